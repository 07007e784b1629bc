"""S3 servers whose listings never end, come slowly, or hold names that nobody has."""

import time
from urllib.parse import parse_qs, urlsplit

from tests.helpers.hostile_server import _Hostile

_ENTRY = (
    "<Contents><Key>{}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
    '<ETag>"0"</ETag><Size>1</Size></Contents>'
)


class Listing(_Hostile):
    """Answers every listing with another page of `keys`, and says that there are more."""

    def attack(self):
        query = parse_qs(urlsplit(self.path).query)
        number = int(query.get("continuation-token", ["0"])[0])
        # What the client skips is skipped.
        after = query.get("start-after", [""])[0]
        if after and not number:
            number = int("".join(letter for letter in after if letter.isdecimal())[:9]) // 1000 + 1
        entries = "".join(_ENTRY.format(key) for key in self.keys(number))
        body = (
            "<ListBucketResult><Name>bucket</Name><IsTruncated>true</IsTruncated>"
            f"<NextContinuationToken>{number + 1}</NextContinuationToken>{entries}"
            "</ListBucketResult>"
        ).encode()
        self.head(200, ("Content-Type", "application/xml"), ("Content-Length", str(len(body))))
        self.send(body)

    def send(self, body):
        self.wfile.write(body)

    def keys(self, number):
        return [f"x/{number * 1000 + each:09}" for each in range(1000)]


class EndlessFolders(Listing):
    def keys(self, number):
        return [f"x/{number * 1000 + each:09}/file" for each in range(1000)]


class LongKeys(Listing):
    def keys(self, number):
        return ["x/" + "a" * 2**20]


class SameKeys(Listing):
    def keys(self, number):
        return [f"x/{each:09}" for each in range(1000)]


class SlowListing(Listing):
    def send(self, body):
        for byte in body:
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            time.sleep(0.1)
