"""The stand-in of the Hub answers Hugging Face's own clients as the Hub does."""

from __future__ import annotations

import json
import sys

import benchmark_data
import pytest
from hub_server import TOKEN, Hub

from jscpt_peft.data.benchmarks import BENCHMARKS

PROGRAM = """
import json, sys
import datasets
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

def outcome(function, *arguments, **keywords):
    try:
        return function(*arguments, **keywords)
    except Exception as error:
        return type(error).__name__

name = "timm/eurosat-rgb"
tables = datasets.load_dataset(name)
stream = datasets.load_dataset(name, split="test", streaming=True)
few = datasets.load_dataset(name, split="test", streaming=True, columns=["label"])
api, stranger = HfApi(), HfApi(token="hf_other")
url = api.create_repo("user/new", private=True)
commit = api.upload_file(path_or_fileobj=b"one", path_in_repo="folder/a.txt", repo_id="user/new")
same = api.upload_file(path_or_fileobj=b"one", path_in_repo="folder/a.txt", repo_id="user/new")
print(json.dumps({
    "rows": {split: len(table) for split, table in tables.items()},
    "names": tables["train"].features["label"].names,
    "pixel": tables["train"][17]["image"].getpixel((4, 4)),
    "streamed": [row["label"] for row in stream],
    "columns": list(next(iter(few))),
    "again": str(api.create_repo("user/new", exist_ok=True)) == str(url),
    "text": open(hf_hub_download("user/new", "folder/a.txt")).read(),
    "files": api.list_repo_files("user/new"),
    "snapshot": outcome(lambda: open(snapshot_download("user/new") + "/folder/a.txt").read()),
    "unchanged": same.oid == commit.oid,
    "missing repository": outcome(hf_hub_download, "user/nothing", "a"),
    "missing file": outcome(hf_hub_download, "user/new", "b"),
    "missing revision": outcome(hf_hub_download, "user/new", "folder/a.txt", revision="v9"),
    "no token": outcome(api.model_info, "user/new", token=False),
    "other token": outcome(stranger.model_info, "user/new"),
    "no right": outcome(stranger.upload_file, path_or_fileobj=b"x", path_in_repo="x", repo_id="user/public"),
}))
"""


@pytest.fixture(scope="module")
def hub():
    with Hub() as hub:
        yield hub


def test_hugging_faces_clients(hub, tmp_path):
    hub.add("timm/eurosat-rgb", benchmark_data.repository("eurosat", BENCHMARKS["eurosat"].hub[0]), kind="datasets")
    hub.add("user/public", {"a": b"a"})
    done = hub.run([sys.executable, "-c", PROGRAM], home=tmp_path, token=TOKEN)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["rows"] == {"train": 100, "validation": 100, "test": 100}
    assert found["names"] == sorted(benchmark_data.raw_names("eurosat"))
    assert found["pixel"] == [1, 7, 0]
    assert found["streamed"] == [label for label in range(10) for _ in range(10)]
    assert found["columns"] == ["label"]
    assert found["again"] and found["text"] == "one" and found["snapshot"] == "one" and found["unchanged"]
    assert found["files"] == ["folder/a.txt"]
    assert hub.files("user/new") == {"folder/a.txt": b"one"}
    assert hub.repositories["models", "user/new"].private
    assert found["missing repository"] == found["no token"] == found["other token"] == "RepositoryNotFoundError"
    assert found["missing file"] == "EntryNotFoundError" or found["missing file"] == "RemoteEntryNotFoundError"
    assert found["missing revision"] == "RevisionNotFoundError"
    assert found["no right"] == "HfHubHTTPError"
