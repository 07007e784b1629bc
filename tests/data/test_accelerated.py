"""Streams in accelerate and transformers' Trainer: every window once an epoch, or refused."""

import json

import pytest
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader

from fusestore.data import (
    BatchOrder,
    FusedDataset,
    StreamingFusedDataset,
    StreamingLoader,
    collate,
)
from fusestore.errors import InvalidInputError
from tests.helpers.started_ranks import start_ranks
from tests.helpers.tiny_models import make_llama, save_model
from tests.helpers.whole_dataset import write_dataset

NUM_WINDOWS = 21

SCRIPT = """
import json, os, sys
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from torch.utils.data import DataLoader
from fusestore.data import BatchOrder, FusedDataset, StreamingFusedDataset, StreamingLoader, collate
from fusestore.errors import InvalidInputError

folder, workers = sys.argv[1], int(sys.argv[2])
rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])

def stream():
    return StreamingFusedDataset(folder, seed=5, shuffle_span=6)

def windows(loader):
    return [batch["window"].tolist() for batch in loader]

def answer(loader):
    try:
        return windows(loader)
    except InvalidInputError as error:
        return str(error)

told = {}
for dispatch in (None, False):
    accelerator = Accelerator(
        dataloader_config=DataLoaderConfiguration(dispatch_batches=dispatch)
    )
    prepare = accelerator.prepare
    options = {"batch_size": 2, "collate_fn": collate}
    told[f"loader {dispatch}"] = [
        windows(loader) for loader in [prepare(StreamingLoader(stream(), 2))] for _ in range(2)
    ]
    plain = DataLoader(
        StreamingFusedDataset(folder, seed=5, shuffle_span=6, batch_size=2),
        num_workers=workers, **options
    )
    told[f"plain {dispatch}"] = answer(prepare(plain))
    order = BatchOrder(NUM, 2, seed=0, epoch=0, rank=rank, world_size=world_size)
    mapped = DataLoader(FusedDataset(folder), batch_sampler=order, collate_fn=collate)
    told[f"mapped {dispatch}"] = answer(prepare(mapped))
every = [None] * world_size
torch.distributed.all_gather_object(every, told)
if rank == 0:
    print(json.dumps(every))
torch.distributed.destroy_process_group()
""".replace("NUM,", f"{NUM_WINDOWS},")

TRAINER = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
import fusestore as fs
from fusestore.data import StreamingFusedDataset, StreamingLoader, collate
from fusestore.errors import InvalidInputError

folder, model_folder, output = sys.argv[1:]

class OnStream(Trainer):
    def get_train_dataloader(self):
        return StreamingLoader(self.train_dataset, self.args.per_device_train_batch_size)

def told(kind, dispatch):
    seen = []

    class Seeing(kind):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            seen.extend(inputs["window"].tolist())
            logits = model(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
            ).logits
            return fs.losses.fusion_loss(logits, inputs)

    trainer = Seeing(
        model=AutoModelForCausalLM.from_pretrained(model_folder),
        args=TrainingArguments(
            output_dir=output, num_train_epochs=2, per_device_train_batch_size=2, report_to=[],
            save_strategy="no", remove_unused_columns=False, use_cpu=True, disable_tqdm=True,
            logging_strategy="no", accelerator_config={"dispatch_batches": dispatch},
        ),
        train_dataset=StreamingFusedDataset(folder, seed=5, shuffle_span=6),
        data_collator=collate,
    )
    try:
        trainer.train()
    except InvalidInputError as error:
        return str(error)
    return seen

mine = {f"{kind.__name__} {dispatch}": told(kind, dispatch)
        for kind in (OnStream, Trainer) for dispatch in (None, False)}
every = [None] * 2
torch.distributed.all_gather_object(every, mine)
if torch.distributed.get_rank() == 0:
    print("TOLD " + json.dumps(every))
torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("stream") / "store" / "fused" / "demo"
    write_dataset(path, num_tokens=20 * 8 + 3, window_length=8, rows_per_shard=40)
    return path


def two_ranks(tmp_path, program, *arguments):
    """What the main of two processes printed last."""
    script = tmp_path / "script.py"
    script.write_text(program)
    processes = start_ranks([script, *arguments], ACCELERATE_USE_CPU="true")
    answers = [process.communicate(timeout=200) for process in processes]
    assert all(process.returncode == 0 for process in processes), answers
    return json.loads(answers[0][0].splitlines()[-1].removeprefix("TOLD "))


def in_turns(ranks):
    """The windows of both ranks in the order of the stream, without fillers."""
    return [window for turn in zip(*ranks, strict=True) for window in turn if window >= 0]


def flat(batches):
    return [window for batch in batches for window in batch]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_accelerate_leaves_a_streaming_loader_and_nothing_is_sharded_twice(
    folder, tmp_path, workers
):
    order = StreamingFusedDataset(folder, seed=5, shuffle_span=6).order
    ranks = two_ranks(tmp_path, SCRIPT, folder, workers)
    for dispatch in ("None", "False"):
        for epoch in range(2):
            found = in_turns([flat(told[f"loader {dispatch}"][epoch]) for told in ranks])
            assert found == order.windows(epoch).tolist()
        for rank, told in enumerate(ranks):
            message = told[f"plain {dispatch}"]
            assert f"rank {rank} of 2 only its own windows" in message
            assert "StreamingLoader" in message
            assert "Do not give its DataLoader" in told[f"mapped {dispatch}"]


@pytest.mark.slow
def test_trainer_reads_a_streaming_loader_and_refuses_the_stream(folder, tmp_path):
    model = save_model(tmp_path / "model", make_llama(100), None)
    order = StreamingFusedDataset(folder, seed=5, shuffle_span=6).order
    ranks = two_ranks(tmp_path, TRAINER, folder, model, tmp_path / "out")
    for dispatch in ("None", "False"):
        found = in_turns([told[f"OnStream {dispatch}"] for told in ranks])
        assert found == [window for epoch in range(2) for window in order.windows(epoch).tolist()]
        assert all("get_train_dataloader" in told[f"Trainer {dispatch}"] for told in ranks)


@pytest.mark.parametrize("dispatch", [True, False])
def test_what_is_one_ranks_share_is_not_sharded_again(folder, dispatch):
    def prepared(loader, *, num_processes=2):
        return prepare_data_loader(
            loader,
            num_processes=num_processes,
            process_index=0,
            put_on_device=True,
            dispatch_batches=dispatch,
        )

    def stream(world_size):
        return StreamingFusedDataset(folder, seed=5, rank=0, world_size=world_size)

    def plain(dataset):
        return DataLoader(dataset, batch_size=2, collate_fn=collate)

    with pytest.raises(InvalidInputError, match=r"rank 0 of 2 only its own.*StreamingLoader"):
        next(iter(prepared(plain(stream(2)))))
    order = BatchOrder(NUM_WINDOWS, 2, seed=0, epoch=0, rank=1, world_size=2)
    mapped = DataLoader(FusedDataset(folder), batch_sampler=order, collate_fn=collate)
    with pytest.raises(InvalidInputError, match=r"rank 1 of 2 only its own.*Do not give"):
        next(iter(prepared(mapped)))
    # A whole stream may be sharded, and so may loaders of one process.
    assert next(iter(prepared(plain(stream(1)))))["window"].shape == (2,)
    shares = prepared(plain(stream(2)), num_processes=1)
    if not dispatch:
        assert len(list(shares)) == 6
    # What is iterated inside a loop over such a loader is not meant.
    for _ in prepared(plain(stream(1))):
        assert len(list(plain(stream(2)))) == 6


def test_accelerate_keeps_the_state_of_a_streaming_loader(folder, tmp_path):
    order = StreamingFusedDataset(folder, seed=5).order.windows(0).tolist()
    accelerator = Accelerator(cpu=True)
    loader = accelerator.prepare(StreamingLoader(StreamingFusedDataset(folder, seed=5), 2))
    batches = iter(loader)
    next(batches), next(batches)
    accelerator.save_state(tmp_path / "state")
    next(batches)
    accelerator.load_state(tmp_path / "state")
    assert flat(batch["window"].tolist() for batch in loader) == order[4:]
