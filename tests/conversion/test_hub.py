"""Names on the hub, from a local cache in the hub's own layout; no network is asked."""

import json
import shutil
from types import SimpleNamespace

import pytest

import conversion
from conversion import hub
from mg_jax.errors import UserError
from tests.conversion.folders import assert_same, read_folder, write_folder

NAME, COMMIT, OLDER = "some-org/Tiny_Llama-1.5", "a" * 40, "b" * 40


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of one repository at two commits; main is the first. Returns (folder, state)."""
    root = tmp_path / "hub"
    repository = root / "models--some-org--Tiny_Llama-1.5"
    states = {}
    for commit in (COMMIT, OLDER):
        snapshot = repository / "snapshots" / commit
        states[commit] = write_folder(tmp_path / commit, "llama")
        snapshot.mkdir(parents=True)
        (repository / "blobs").mkdir(exist_ok=True)
        for file in (tmp_path / commit).iterdir():  # files are links to blobs
            blob = repository / "blobs" / f"{commit}-{file.name}"
            shutil.move(file, blob)
            (snapshot / file.name).symlink_to(blob)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "refs" / "v1").write_text(OLDER)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(root))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return root, states


def test_a_name_is_read_from_the_cache_and_its_commit_noted(cache, tmp_path):
    release = conversion.convert(NAME, tmp_path / "b", check=True)
    made = json.loads((release / "config.json").read_text())["provenance"]
    assert made["converted_from"] == NAME and made["revision"] == COMMIT
    back = conversion.convert(release, tmp_path / "c")
    assert_same(read_folder(back), cache[1][COMMIT])
    assert (release / "upstream" / "config.json").is_file()
    assert not (release / "upstream" / "config.json").is_symlink()


@pytest.mark.parametrize("revision", ["v1", OLDER])
def test_a_revision_is_pinned(cache, tmp_path, revision):
    release = conversion.convert(NAME, tmp_path / "b", revision=revision)
    assert json.loads((release / "config.json").read_text())["provenance"]["revision"] == OLDER


def test_parameters_are_read_in_memory_too(cache):
    config, params, tokenizer = conversion.read(NAME)
    assert config["architecture"] == "llama" and tokenizer is None
    assert params["lm"]["embed"]["embedding"].shape == (40, 32)


@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        (
            "some-org/other",
            None,
            "some-org/other: no such folder here, not in the cache, and the hub",
        ),
        (NAME, "c" * 40, "at revision c{40}: .*not in the cache"),
        (NAME, "v2", f"hf download {NAME} --revision v2; then pass"),
    ],
)
def test_what_is_not_cached_is_said_without_a_network(cache, tmp_path, name, revision, message):
    with pytest.raises(UserError, match=message):
        conversion.prepare(name, tmp_path / "b", revision=revision)


def test_a_download_that_broke_off_is_no_checkpoint(cache, tmp_path):
    snapshot = cache[0] / "models--some-org--Tiny_Llama-1.5" / "snapshots" / COMMIT
    (snapshot / "model.safetensors").unlink()
    index = {"weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="model-00002-of-00002.safetensors: no such file"):
        conversion.prepare(NAME, tmp_path / "b")


def test_a_local_folder_goes_before_a_name(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "some-org" / "Tiny_Llama-1.5", "llama")
    assert not hub.is_name(NAME)
    assert conversion.locate(NAME) == tmp_path / NAME
    with pytest.raises(UserError, match="--revision v1: .*not a name on the hub"):
        conversion.locate(NAME, "v1")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", True),
        ("org/name-1.5_x", True),
        ("name", False),
        ("a/b/c", False),
        ("./name", False),
        ("/org/name", False),
        ("org/na me", False),
    ],
)
def test_what_may_be_a_name(text, expected):
    assert hub.is_name(text) == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["model.safetensors", "pytorch_model.bin"], ("*.safetensors",)),
        (["pytorch_model-00001-of-00002.bin", "training_args.bin"], ("pytorch_model*.bin",)),
        (["iter_1.pth"], ("*.bin", "*.pth", "*.pt")),
        (["original/consolidated.safetensors", "pytorch_model.bin"], ("pytorch_model*.bin",)),
        (["README.md"], ()),
    ],
)
def test_one_kind_of_weights_is_fetched(files, expected):
    assert hub.wanted(files) == expected


class Online:
    """A hub that answers, as far as `fetch` asks."""

    def __init__(self, files=(), error=None, folder=None, breaks=None):
        self.files, self.error, self.folder, self.breaks = files, error, folder, breaks
        self.asked = []

    def model_info(self, name, revision=None):
        if self.error is not None:
            raise self.error
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=f) for f in self.files])

    def snapshot_download(self, name, **options):
        self.asked.append((name, options))
        if self.breaks is not None:
            raise self.breaks
        return str(self.folder)


@pytest.fixture
def online(monkeypatch):
    def put(hub_):
        monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub_)
        monkeypatch.setattr("huggingface_hub.snapshot_download", hub_.snapshot_download)
        return hub_

    return put


def test_online_the_weights_and_small_files_are_asked_for(online, tmp_path):
    there = online(Online(["a.safetensors", "a.bin"], folder=tmp_path))
    assert hub.fetch(NAME, "v1") == tmp_path
    ((name, options),) = there.asked
    assert name == NAME and options["revision"] == "v1"
    assert "*.safetensors" in options["allow_patterns"] and "*.bin" not in options["allow_patterns"]
    assert {"*.json", "tokenizer*"} <= set(options["allow_patterns"])


def test_errors_of_the_hub_are_told_in_one_line(online):
    from huggingface_hub import errors

    def made(kind):
        error = kind.__new__(kind)
        Exception.__init__(error, "401")
        return error

    for kind, message in (
        (errors.GatedRepoError, "asks for a licence to be accepted first"),
        (errors.RevisionNotFoundError, "has no revision 'v9' on the hub"),
        (errors.RepositoryNotFoundError, "no such folder here, and no such name on the hub"),
    ):
        online(Online(error=made(kind)))
        with pytest.raises(UserError, match=message):
            hub.fetch(NAME, "v9")
    online(Online(["a.safetensors"], breaks=ConnectionError("reset by peer")))
    with pytest.raises(UserError, match=r"broke off \(reset by peer\); the same command goes on"):
        hub.fetch(NAME)
    online(Online(["a.safetensors"], breaks=OSError(28, "No space left on device")))
    with pytest.raises(UserError, match="the disk is full"):
        hub.fetch(NAME)
