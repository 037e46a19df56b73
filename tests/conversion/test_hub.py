"""Names on the hub, from a local cache in the hub's own layout; no network is asked."""

import json
import shutil
from fnmatch import fnmatch
from types import SimpleNamespace

import numpy as np
import pytest

import conversion
from conversion import hub
from mg_jax.errors import UserError
from tests.conversion.folders import assert_same, into_cache, read_folder, write_folder

NAME, COMMIT, OLDER = "some-org/Tiny_Llama-1.5", "a" * 40, "b" * 40


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of one repository at two commits; main is the first. Returns (folder, state)."""
    root = tmp_path / "hub"
    states = {}
    for seed, (commit, ref) in enumerate(((COMMIT, "main"), (OLDER, "v1"))):
        states[commit] = write_folder(tmp_path / commit, "llama", seed=seed)
        into_cache(root, NAME, tmp_path / commit, commit, ref)
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
@pytest.mark.parametrize("inside", [False, True])
def test_a_revision_is_pinned(cache, tmp_path, revision, inside):
    name, option = (f"{NAME}@{revision}", None) if inside else (NAME, revision)
    release = conversion.convert(name, tmp_path / "b", revision=option)
    assert json.loads((release / "config.json").read_text())["provenance"]["revision"] == OLDER


def test_one_revision_is_named(cache, tmp_path):
    with pytest.raises(UserError, match=f"{NAME}@v1: --revision main names another one"):
        conversion.prepare(f"{NAME}@v1", tmp_path / "b", revision="main")


def test_a_base_is_pinned_and_noted(cache, tmp_path):
    """Sums, so that another commit of the base gives other numbers."""
    delta = write_folder(tmp_path / "delta", "llama", np.float16)
    sums = {}
    for commit in (COMMIT, OLDER):
        base = f"{NAME}@{commit}"
        release = conversion.convert(tmp_path / "delta", tmp_path / commit[0], base=base)
        made = json.loads((release / "config.json").read_text())["provenance"]
        assert made["base"] == {"from": base, "revision": commit}
        sums[commit] = read_folder(conversion.convert(release, tmp_path / f"{commit[0]}_back"))
        for name, whole in cache[1][commit].items():
            expected = whole.astype(np.float16) + delta[name]
            np.testing.assert_array_equal(sums[commit][name], expected)
    assert not np.array_equal(*(state["lm_head.weight"] for state in sums.values()))


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
        (NAME, "c" * 40, f"{NAME}@c{{40}}: .*not in the cache"),
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
    with pytest.raises(UserError, match=r"index.json: names the shard model-00002-of-"):
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
        ("org/name@v1.0", True),
        ("org/name@refs/pr/1", True),
        ("org/name@", False),
        ("name", False),
        ("a/b/c", False),
        ("./name", False),
        ("/org/name", False),
        ("org/na me", False),
    ],
)
def test_what_may_be_a_name(text, expected):
    assert hub.is_name(text) == expected


class Online:
    """A hub that answers: a folder of this machine, or an error.

    What is asked for is laid into `cache` in the hub's own layout, under `sha`.
    """

    def __init__(self, folder, cache, error=None, breaks=None, sha=COMMIT):
        self.folder, self.error, self.breaks, self.sha = folder, error, breaks, sha
        self.repository = cache / "models--some-org--Tiny_Llama-1.5"
        self.here = self.repository / "snapshots" / sha
        self.fetched, self.headers = [], []

    def model_info(self, name, revision=None):
        if self.error is not None:
            raise self.error
        files = (f for f in sorted(self.folder.rglob("*")) if f.is_file())
        listed = [SimpleNamespace(rfilename=str(f.relative_to(self.folder))) for f in files]
        return SimpleNamespace(siblings=listed, sha=self.sha)

    def snapshot_download(self, name, *, revision, cache_dir, allow_patterns, **options):
        if options.get("local_files_only"):
            if not self.here.is_dir():
                raise FileNotFoundError(name)
            return str(self.here)
        if self.breaks is not None:
            raise self.breaks
        self.here.mkdir(parents=True, exist_ok=True)
        (self.repository / "refs").mkdir(exist_ok=True)
        (self.repository / "refs" / "main").write_text(self.sha)
        for file in self.folder.rglob("*"):  # as the client filters: * crosses a slash
            path = str(file.relative_to(self.folder))
            if file.is_file() and any(fnmatch(path, p) for p in allow_patterns):
                (self.here / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, self.here / path)
                self.fetched.append(path)
        return str(self.here)

    def parse_safetensors_file_metadata(self, name, file, revision=None):
        self.headers.append(file)
        raw = (self.folder / file).read_bytes()
        fields = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        fields.pop("__metadata__", None)
        kinds = {n: SimpleNamespace(dtype=x["dtype"], shape=x["shape"]) for n, x in fields.items()}
        return SimpleNamespace(tensors=kinds)


@pytest.fixture
def online(tmp_path, monkeypatch):
    """A function: what is published, as {path: content} -> the hub that has it."""
    root = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(root))

    def put(files=None, **options):
        folder = tmp_path / "published"
        for path, content in (files or {}).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        there = Online(folder, root, **options)
        monkeypatch.setattr("huggingface_hub.HfApi", lambda: there)
        monkeypatch.setattr("huggingface_hub.snapshot_download", there.snapshot_download)
        return there

    return put


def index_of(*shards):
    return json.dumps({"weight_map": {f"t{i}": s for i, s in enumerate(shards)}}).encode()


SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.mark.parametrize(
    ("weights", "others"),
    [
        (["model.safetensors"], ["pytorch_model.bin", "fp16/model.safetensors", "model.onnx"]),
        (["pytorch_model.bin"], ["adapter.safetensors", "optimizer.pt", "original/x.pth"]),
        (["iter_1.pth"], ["optimizer.pt", "training_args.bin", "nested/iter_2.pth"]),
        (["tower.safetensors"], ["tower.bin"]),
        (["mp_rank_00_model_states.pt"], ["zero_pp_rank_0_mp_rank_00_optim_states.pt"]),
        (["model.safetensors.index.json", *SHARDS], ["model-00001-of-00009.safetensors"]),
    ],
)  # fmt: skip
def test_exactly_the_files_that_are_read_are_fetched(online, weights, others):
    small = ["config.json", "tokenizer.model", "vocab.json", "LICENSE.txt"]
    never = ["onnx/config.json", "tokenizer/vocab.json", "notes.txt"]
    files = dict.fromkeys([*weights, *small, *others, *never], b"x")
    if len(weights) > 1:
        files[weights[0]] = index_of(*SHARDS)
    there = online(files)
    found = hub.fetch(NAME)
    assert found.path == there.here and found.headers is None
    assert set(there.fetched) == {*weights, *small}


def test_weights_that_are_not_read_are_not_fetched(online):
    """Of a language model whose fine-tuned weights are elsewhere: 13 GB of the 7B."""
    small = {"config.json", "tokenizer.model"}
    there = online(dict.fromkeys([*small, "a.bin", "b.bin"], b"x"))
    assert hub.fetch(NAME, weights=False).path == there.here
    assert set(there.fetched) == small and not there.headers


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["README.md"], f"{NAME}: holds no model.safetensors"),
        (["a.pth", "b.pth"], f"{NAME}: holds a.pth, b.pth; name the file"),
        (["model-00001-of-00002.safetensors"], "but no index of them"),
    ],
)
def test_what_cannot_be_read_is_told_before_it_is_fetched(online, files, message):
    there = online(dict.fromkeys(files, b"x"))
    with pytest.raises(UserError, match=message):
        hub.fetch(NAME)
    assert not there.fetched


@pytest.mark.parametrize("sharded", [False, True])
def test_a_dry_run_fetches_headers_alone(online, tmp_path, monkeypatch, sharded):
    monkeypatch.setattr("conversion.export.SHARD", 20_000 if sharded else 1 << 40)
    write_folder(tmp_path / "a", "llama")
    release = conversion.convert(tmp_path / "a", tmp_path / "b")
    conversion.convert(release, tmp_path / "published")
    there = online()
    job = conversion.prepare(NAME, tmp_path / "c", dry=True)
    text = job.describe()
    local = conversion.prepare(tmp_path / "published", tmp_path / "c").describe()
    assert text.splitlines()[1:] == local.splitlines()[1:]  # but for the name
    weights = sorted(f.name for f in (tmp_path / "published").glob("*.safetensors"))
    assert there.headers == weights and (len(weights) > 1) == sharded
    assert not set(weights) & set(there.fetched) and "config.json" in there.fetched
    with pytest.raises(UserError, match="was not fetched; plan without dry=True"):
        job.run()
    # what is in the cache needs no header
    conversion.prepare(NAME, tmp_path / "c")
    assert set(weights) < set(there.fetched)
    conversion.prepare(NAME, tmp_path / "c", dry=True)
    assert there.headers == weights


def test_a_dry_run_does_not_fetch_what_has_changed_since(online, tmp_path):
    """Weights of an older main in the cache are not those that are asked for."""
    write_folder(tmp_path / "published", "llama")
    online()
    conversion.prepare(NAME, tmp_path / "b")
    moved = online(sha="d" * 40)
    conversion.prepare(NAME, tmp_path / "b", dry=True)
    assert moved.headers == ["model.safetensors"] and "model.safetensors" not in moved.fetched


def test_a_dry_run_of_torch_files_says_that_they_must_be_here(online, tmp_path):
    there = online({"config.json": b"{}", "pytorch_model.bin": b"x"})
    with pytest.raises(UserError, match=f"pytorch_model.bin: is a torch file.*hf download {NAME}`"):
        conversion.prepare(NAME, tmp_path / "b", dry=True)
    assert not there.fetched


def refusals():
    from huggingface_hub import errors

    for kind, message in (
        (errors.GatedRepoError, "asks for a licence to be accepted first"),
        (errors.RevisionNotFoundError, "has no revision 'v9' on the hub"),
        (errors.RepositoryNotFoundError, "no such folder here, and no such name on the hub"),
    ):
        error = kind.__new__(kind)
        Exception.__init__(error, "401")
        yield error, message


@pytest.mark.parametrize("asked", ["error", "breaks"])
def test_refusals_of_the_hub_are_told_in_one_line(online, asked):
    """When the name is looked up, or when a file is fetched (as of a gated repository)."""
    for error, message in refusals():
        online({"a.safetensors": b"x"}, **{asked: error})
        with pytest.raises(UserError, match=message):
            hub.fetch(NAME, "v9")


def test_the_cache_serves_where_the_hub_refuses(online, tmp_path):
    write_folder(tmp_path / "published", "llama")
    online()
    hub.fetch(NAME)
    for error, message in refusals():
        there = online(error=error)
        job = conversion.prepare(NAME, tmp_path / "b", revision="v9")
        assert job.notes[0].startswith("read from the cache, since the hub refuses: ")
        assert message.replace("\\", "") in job.notes[0]
    (there.here / "model.safetensors").unlink()  # what is not whole does not serve
    with pytest.raises(UserError, match="^some-org/Tiny_Llama-1.5: no such folder here, and no su"):
        hub.fetch(NAME, "v9")


def test_a_download_that_breaks_off_goes_on(online):
    online({"a.safetensors": b"x"}, breaks=ConnectionError("reset by peer"))
    with pytest.raises(UserError, match=r"broke off \(reset by peer\); the same command goes on"):
        hub.fetch(NAME)
    online({"a.safetensors": b"x"}, breaks=OSError(28, "No space left on device"))
    with pytest.raises(UserError, match="the disk is full"):
        hub.fetch(NAME)
