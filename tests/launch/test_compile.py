"""`launch.compile`: arguments, what is tried when a program does not fit; and, where libtpu is
installed, one program of the tiny model for a slice."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from launch import compile as command
from launch import pod_table
from launch.aot import job, programs, slices, weight
from mg_jax import sharding
from mg_jax.errors import UserError

find = importlib.util.find_spec
ROOT = Path(__file__).resolve().parents[2]
TINY = "configs/groma.py:stage=instruction,size=tiny"


def run(*args):
    env = {k: v for k, v in os.environ.items() if k != "TPU_LIBRARY_PATH"}
    return subprocess.run([sys.executable, "-m", "launch.compile", *args], cwd=ROOT, timeout=900,
                          capture_output=True, text=True, env=env)  # fmt: skip


@pytest.mark.parametrize(
    "args,message",
    [
        (["--config", TINY], "--topology is missing"),
        (["--config", TINY, "--topology", "v5e:4x4x4"], "v5e has 2 dimensions"),
        (["--config", TINY, "--topology", "t4:2x2"], "t4 is a number of GPUs, as t4:4"),
        (["--config", TINY, "--topology", "t4:16"], "at most the 8 GPUs of one machine"),
        (
            ["--config", TINY, "--topology", "v5e:2x2", "--quantize", "int8"],
            "integers do not learn",
        ),
        (["--config", TINY, "--topology", "v5e:17x1"], "more than a pod of v5e, 16x16"),
        (["--config", TINY, "--topology", "v5e:2x2", "--hlo", "/no/such/x"], "--hlo /no/such/x:"),
        (["--config", TINY, "--topology", "v5e:2x2", "--batch=0"], "--batch=0"),
        (["--config", TINY, "--topology", "v5e:2x2", "--new_tokens=-5000"], "--new_tokens=-5000"),
        (["--config", TINY, "--topology", "v5e:2x2", "--text_tokens=-9000"], "--text_tokens=-9000"),
    ],
)
def test_wrong_arguments_are_one_line(args, message):
    done = run(*args)
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.skipif(find("libtpu") is None, reason="make setup EXTRAS=tpu")
@pytest.mark.parametrize("mesh,tensor", [([], 4), (["--mesh=tensor=2"], 2)])
def test_a_decoding_step_is_compiled_for_a_slice(mesh, tensor):
    done = run("--config", TINY, "--topology", "v5e:2x2", "--program", "decode", "--json",
               "--text_tokens=100", "--new_tokens=50", "--config.model.lm.layers=8",
               *mesh)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "host bounds" not in done.stderr
    report = json.loads(done.stdout)
    assert report["fits"] and report["devices"] == 4 and report["mesh"]["tensor"] == tensor
    assert report["rules"] == "fsdp_tensor" and report["estimate"]["unknown_trips"] == []
    assert 0 < report["bytes"]["peak"] < 2**28 and report["replicated"] == []
    found = report["estimate"]
    assert found["seconds"] > 0 and report["model_flops"] > 0
    assert max(p["times"] for p in found["programs"]) == 8  # layers of the language model


def test_the_largest_arrays_are_those_of_as_many_devices(monkeypatch):
    grids, refuse = [], [None]

    class Program:
        def __init__(self, config, grid, kind):
            grids.append(grid)

        def lower(self):
            return self

        def compile(self, options=None):
            if refuse[0]:
                raise refuse[0]
            return self

        def as_text(self):
            return ""

    monkeypatch.setattr(job.slices, "devices", lambda name: jax.devices()[:4])
    monkeypatch.setattr(job.programs, "lowered", Program)
    monkeypatch.setattr(job.estimate, "largest", lambda text: ["a"])
    one, four = {"data": 1, "fsdp": 1, "tensor": 1}, {"data": 1, "fsdp": 4, "tensor": 1}
    found = job.buffers(None, "v5e:1x1", one, "train")
    assert found == {"compiled_for": "1 of the 4 devices of v5p:2x2x1", "largest": ["a"]}
    assert job.buffers(None, "v5e:2x2", four, "train")["compiled_for"] == "v5p:2x2x1"
    assert [grid.size for grid in grids] == [1, 4]
    refuse[0] = ValueError("a part of a slice")
    assert job.buffers(None, "v5e:1x1", one, "train") is None
    with pytest.raises(ValueError, match="a part"):
        job.buffers(None, "v5e:2x2", four, "train")
    refuse[0] = RuntimeError("RESOURCE_EXHAUSTED: no")
    assert job.buffers(None, "v5e:2x2", four, "train") is None


@pytest.mark.skipif(find("libtpu") is None, reason="make setup EXTRAS=tpu")
def test_what_one_chip_lacks_room_for_is_looked_at_in_a_part_of_a_roomier_slice():
    big = ["--config.model.lm.layers=3", "--config.model.lm.width=8192", "--config.batch_size=1",
           "--config.model.lm.mlp=24576"]  # fmt: skip
    done = run("--config", TINY, "--topology", "v5e:1x1", "--json", "--tries=1", *big)
    assert done.returncode == command.FULL, done.stderr
    report = json.loads(done.stdout)
    assert report["roomier"]["compiled_for"] == "1 of the 4 devices of v5p:2x2x1"
    assert report["roomier"]["largest"]


@pytest.mark.skipif(find("libtpu") is not None, reason="libtpu is there")
def test_without_the_compiler_it_says_how_to_get_it():
    done = run("--config", TINY, "--topology", "v5e:2x2")
    assert done.returncode == 2 and "make setup EXTRAS=tpu" in done.stderr


CUDA = find("jax_plugins") and find("jax_plugins.xla_cuda12")


@pytest.mark.skipif(CUDA is None, reason="make setup EXTRAS=gpu")
def test_a_decoding_step_is_compiled_for_a_gpu_that_is_not_there():
    done = run("--config", TINY, "--topology", "t4:1", "--program", "decode", "--json",
               "--text_tokens=100", "--new_tokens=50", "--quantize=int8")  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["fits"] and 0 < report["bytes"]["peak"] < 2**28
    assert report["versions"]["jax-cuda12-plugin"]


@pytest.mark.skipif(CUDA is not None, reason="the compiler is there")
def test_without_the_gpu_compiler_it_says_how_to_get_it():
    done = run("--config", TINY, "--topology", "l4:1")
    assert done.returncode == 2 and "make setup EXTRAS=gpu" in done.stderr


def test_every_gpu_is_told_to_the_compiler_whole():
    for name in slices.GPUS:
        text = slices.target(name)
        assert f"device_memory_size: {round(slices.chip(name + ':1').memory)}" in text
        assert text.count("{") == text.count("}") == 4 and "cuda_compute_capability { major" in text
        assert slices.roomier(f"{name}:1") == (None if name == "h200" else "h200:1")


def fresh(text, remat):
    config = weight.config_of(text).copy_and_resolve_references()
    programs.set_remat(config, remat)
    return config


def divides(config, mesh):
    ways = mesh["data"] * mesh["fsdp"]
    return config.batch_size % (config.accumulate * ways) == 0


GROMA = "configs/groma.py:stage=instruction,size=7b,form=published"


def test_one_setting_of_a_kind_is_tried_before_it_is_refined():
    config, mesh = fresh(GROMA, "full"), {"data": 1, "fsdp": 4, "tensor": 1}
    tried = list(job.alternatives(config, mesh, "train"))
    assert [s.flags for s in tried] == [
        "--config.accumulate=32",
        "--config.accumulate=32 --config.optim.offload=True",
        "--mesh=data=1,fsdp=1,tensor=4 --config.rules=fsdp_tensor --config.accumulate=128",
        "--mesh=data=1,fsdp=1,tensor=4 --config.rules=fsdp_tensor --config.accumulate=128 "
        "--config.optim.offload=True",
    ]
    assert [s.accumulate for s in job.cheaper(config, tried[1])] == [16, 8, 4, 2]
    assert all(s.offload for s in job.cheaper(config, tried[1]))
    (smaller,) = job.cheaper(config, tried[3])
    assert smaller.mesh == {"data": 1, "fsdp": 2, "tensor": 2} and smaller.accumulate == 64
    assert smaller.offload
    for setting in (*tried, smaller):
        assert divides(setting.of(config), setting.mesh or mesh)


def test_what_else_a_setting_changes_stands_in_its_flags():
    config = fresh("configs/groma.py:stage=instruction,size=7b", "dots")
    assert programs.remats_of(config) == "lm=dots proposer=dots vision=dots"
    config.rules = "replicated"
    tried = list(job.alternatives(config, {"data": 16, "fsdp": 1, "tensor": 1}, "train"))
    whole = "--mesh=data=1,fsdp=16,tensor=1 --config.rules=fsdp"
    assert [s.flags for s in tried[:3]] == [
        whole, f"{whole} --remat=full", f"{whole} --remat=full --config.accumulate=8"
    ]  # fmt: skip
    changed = tried[2].of(config)
    assert "dots" not in programs.remats_of(changed) and changed.accumulate == 8
    assert (changed.rules, config.rules, config.accumulate) == ("fsdp", "replicated", 1)
    assert len(tried) == 6  # as many as are tried without --tries
    assert list(job.cheaper(config, tried[0])) == []  # nothing lies between


def test_for_serving_heads_are_split_and_kernels_quantized():
    config = fresh(GROMA, "full")
    one = {"data": 1, "fsdp": 1, "tensor": 1}
    tried = list(job.alternatives(config, one, "decode"))
    assert [s.flags for s in tried] == ["--quantize=int8", "--quantize=int4"]
    assert [s.of(config).model.lm.quant for s in tried] == ["int8", "int4"]
    tried = list(job.alternatives(config, {"data": 1, "fsdp": 4, "tensor": 1}, "answer"))
    mesh = "--mesh=data=1,fsdp=1,tensor=4"
    assert [s.flags for s in tried] == [mesh, f"{mesh} --quantize=int8", f"{mesh} --quantize=int4"]
    config.model.lm.quant = "int4"
    assert list(job.alternatives(config, one, "decode")) == []


@pytest.mark.parametrize(
    "tries,least,advice,asked,untried",
    [
        (6, 8, "--config.accumulate=8", [32, 16, 8, 4], 0),
        (2, 8, "--config.accumulate=16", [32, 16], 0),
        (6, 64, None, [32, 32, 128, 128], 0),
        (3, 64, None, [32, 32, 128], 1),
    ],
)
def test_the_cheapest_setting_that_fits_is_the_advice(
    monkeypatch, tries, least, advice, asked, untried
):
    seen, said = [], []

    def compile_for(config, topology, mesh, kind, **options):
        seen.append((config.accumulate, topology, mesh["tensor"], options))
        return {"fits": mesh["tensor"] == 1 and config.accumulate >= least, "needed": 1.0}

    monkeypatch.setattr(job, "compile_for", compile_for)
    mesh = {"data": 1, "fsdp": 4, "tensor": 1}
    config = fresh(GROMA, "full")
    found = job.search(config, "v5e:2x2", mesh, "train", tries, said.append, rows=1)
    assert [a for a, *_ in seen] == asked
    assert {s[1] for s in seen} == {"v5e:2x2"} and seen[0][3] == {"rows": 1}
    assert found.get("advice") == advice and found.get("untried", 0) == untried
    assert said == [t["setting"] for t in found["tried"]]
    assert said[0] == "--config.accumulate=32"


@pytest.mark.parametrize(
    "report,line",
    [
        ({"tried": [{}], "advice": "--quantize=int8"}, "flags added: --quantize=int8"),
        ({"tried": [{}] * 2, "untried": 0}, "none of these fits: take a larger slice"),
        (
            {"tried": [{}] * 2, "untried": 3},
            "none of these 2 fits; all there are to try: --tries=5",
        ),
        ({"tried": [], "untried": 0}, "so none was tried: take a larger slice"),
    ],
)
def test_what_came_of_trying_is_said_as_it_is(report, line):
    assert command.outcome(report).endswith(line)


def test_what_cannot_fit_is_known_without_compiling():
    text = "configs/groma.py:stage=instruction,size=7b,form=published"
    assert weight.held(text, "train") / 2**30 == pytest.approx(79.5, abs=1)
    assert weight.held(text, "decode") / 2**30 == pytest.approx(13.8, abs=0.3)
    flags = ["--config", text]
    assert pod_table.hopeless(flags, "v5e", 4) and not pod_table.hopeless(flags, "v5e", 16)
    served = [*flags, "--program", "decode", "--quantize", "int8"]
    assert not pod_table.hopeless(served, "v5e", 1)
    assert weight.held(text, "decode", "int8") / 2**30 == pytest.approx(7.5, abs=0.3)


def test_an_answer_is_a_prompt_and_the_loop_after_it():
    grid = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    config = weight.config_of(TINY)
    program = programs.lowered(config, grid, "answer", rows=2, new_tokens=7, text_tokens=64)
    lowered = program.lower()
    assert lowered.out_info.tokens.shape == (2, 7)
    prompt = programs.lowered(config, grid, "prefill", rows=2, new_tokens=7, text_tokens=64).lower()
    loops = [x.as_text().count("stablehlo.while") for x in (lowered, prompt)]
    assert loops[0] > loops[1]
    assert job.withheld("answer", slices.chip("v5e:1x1"))
    assert job.withheld("decode", slices.chip("t4:1")) and not job.withheld(
        "decode", slices.chip("l4:1")
    )


@pytest.mark.parametrize(
    "key,value,message",
    [
        ("model.vision.remat", "foo", "config.model: .*remat='foo' is not one of none, full"),
        ("model.lm.heads", 5, "config.model: .*5 heads cannot share"),
        ("rules", "fdsp", "config.rules: 'fdsp' is not one of"),
    ],
)
def test_wrong_values_of_what_serves_are_one_line(key, value, message):
    grid = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    config = weight.config_of(TINY).copy_and_resolve_references()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=message):
        programs.lowered(config, grid, "decode", rows=1)


def test_a_report_reads_well():
    report = {
        "system": "groma", "stage": "instruction", "size": "7b", "program": "train", "rows": 128,
        "tokens": 2502, "topology": "v5e:2x2", "devices": 4, "rules": "fsdp", "fits": False,
        "mesh": {"data": 1, "fsdp": 4, "tensor": 1}, "compile_seconds": 10.0, "hbm": 2**34,
        "replicated": [], "needed": 20.0 * 2**30, "available": 15.75 * 2**30,
        "roomier": {"compiled_for": "v5p:2x2x1",
                    "largest": [{"bytes": 2**30, "count": 2, "array": "f32[4]", "made_by": "x"}]},
        "tried": [{"setting": "--config.accumulate=2", "fits": True, "needed": None}],
        "advice": "--config.accumulate=2",
    }  # fmt: skip
    text = command.table(report)
    assert "fits: false" in text and "needs 20.00 GiB of 15.75" in text
    assert "compiled for v5p:2x2x1" in text and "tried --config.accumulate=2: fits" in text


def test_the_parts_of_a_program_are_shown_or_said_to_be_left_out():
    parts = [{"name": f"p{i}", "times": i, "seconds": 0.01} for i in range(8)]
    lines = command.loops({"programs": parts, "unknown_trips": ["p3", "p7"]})
    assert lines[0] == "  0 x p0: 10.0 ms" and len(lines) == command.SHOWN + 2
    assert lines[-2] == "  3 more, together 30.0 ms (--json has all)"
    assert lines[-1] == "unknown trips, counted once though the data decide: p3, p7"
    assert len(command.loops({"programs": parts[:2], "unknown_trips": []})) == 2
