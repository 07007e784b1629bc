"""Texts that tokenizers disagree about: many scripts, each in all normal forms, oddly joined."""

from __future__ import annotations

import random
import unicodedata
from typing import Literal

PIECES = (
    "café naïve Ångström",
    "Tiếng Việt được ưa chuộng",
    "İstanbul ß ŉ Ǆ",
    "ΑΣΣ ὁ ᾳ",
    "Їжак йод ё",
    "한국어 각하 ㄱㅏ",
    "\u1112\u1161\u11ab\u1100\u1161",
    "日本語 ガギ ﾊﾞﾋﾟ ㌔",
    "漢字 豈 﨑 𠮷",
    "ｆｕｌｌ　ＷＩＤＴＨ１２",
    "العربية ﷺ ﻻ ﺍﻟﻌﺮ",
    "עִבְרִית שׁ",
    "हिन्दी क़ ड़ क्षि",
    "বাংলা ো ৌ",
    "தமிழ் ொ",
    "ภาษาไทย น้ำ",
    "ລາວ ຳ",
    "👩🏽\u200d🚀🦜",
    "🏳️\u200d🌈 🇫🇷🇩🇪",
    "❤️ ☺︎",
    "1️⃣2️⃣",
    "½ ⅓ ²³ ① ㈱ ™ ℡ Ω Å",
    "ﬁne oﬃce ﬀ",
    "…‥ ‼ ⁇",
    "𝒜𝖇𝟙𝔸",
    "x\u0323\u0307 q\u0307\u0323",
    "e\u0301\u0301\u0301\u0301",
    "I'M sure it's THE user's",
    "12345 67 8.90 1e-5",
    "for(i=0;i<n;++i){\n\treturn a[i]!=b;}",
    "a_b-c~d`e^f|g",
    "1. First\n2. Second\n\n3. Third",
    "<|im_end|><s>[INST]</s>",
    "▁a ▁▁b",
    "``quoted'' -- so...",
    "\u00a0\u2009\u3000\u2028\u0085",
    "\u200b\u200c\u200d\u2060\ufeff",
    "\x00\x04\x13\x1d\x7f",
    "\U000f1234\ue000\U00040000",
    "\u0301 alone",
    "  two  spaces ",
    "\t\ttabs\r\n\r\n",
    "\n \n",
    "",
    " ",
)
"""Most change under some normal form, or are cut by some tokenizer."""

FORMS: tuple[Literal["NFC", "NFD", "NFKC", "NFKD"], ...] = ("NFC", "NFD", "NFKC", "NFKD")


def difficult_texts(count: int = 300) -> list[str]:
    """The pieces by themselves in every normal form, then random chains of pieces; always alike."""
    alone = [piece for text in PIECES for piece in (text, *_forms(text)) if piece]
    texts = list(dict.fromkeys(alone))
    chance = random.Random(15)  # noqa: S311 - nothing is secret here
    while len(texts) < count:
        pieces = [chance.choice((piece, *_forms(piece))) for piece in chance.choices(PIECES, k=4)]
        joints = chance.choices((" ", "", "\n", "a"), k=4)
        texts.append("".join(a + b for a, b in zip(pieces, joints, strict=True)))
    return texts[:count]


def _forms(text: str) -> list[str]:
    return [unicodedata.normalize(form, text) for form in FORMS]
