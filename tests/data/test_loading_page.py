"""The example of docs/loading.md does what the page says."""

import re
from pathlib import Path

import pytest

from fusestore.storage.location import Location
from tests.helpers.whole_dataset import share, write_dataset

PAGE = Path(__file__).parents[2] / "docs" / "loading.md"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_the_example_runs(tmp_path, s3_url):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    made, _ = write_dataset(
        tmp_path / "made", num_tokens=2_000 * 8, window_length=8, rows_per_shard=4_096
    )
    share(made, Location.parse(s3_url) / "my.store/fused/demo")
    for given, here in (
        ("s3://bucket/my.store", f"{s3_url}/my.store"),
        ("/scratch/fused", str(tmp_path / "cache")),
        ('"demo")', f'"demo", cache_dir={str(tmp_path / "copy")!r})'),
    ):
        assert given in code
        code = code.replace(given, here)
    names = {}
    exec(code, names)  # noqa: S102 - our own page
    order = names["stream"].order.windows(0).tolist()
    assert names["state"]["position"] == 800
    rest = [window for batch in names["loader"] for window in batch["window"].tolist()]
    assert rest == order[800:]
