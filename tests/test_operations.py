"""The account of a step's bytes, of a small program in the form that a TPU's compiler writes."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from mcl_jax.planning import hlo, operations

TEXT = (Path(__file__).parent / "data/step_of_two_layers.hlo").read_text()
MAP = 4 * 8 * 8 * 64 * 2  # bytes of the feature map, bf16; a tile of 128 channels is half full
KERNEL = 3 * 3 * 64 * 64 * 4  # and of the kernel, float32, in the same tiles


@pytest.mark.parametrize(
    ("kind", "size", "stored"),
    [
        ("f32[2,64]{1,0:T(8,128)}", 512, 8 * 128 * 4),
        ("bf16[4,8,8,64]{3,2,1,0:T(8,128)(2,1)}", MAP, 2 * MAP),
        ("bf16[4,8,8,64]{0,2,1,3:T(8,128)(2,1)}", MAP, 32 * MAP),  # images side by side: 4 of 128
        ("f32[300]{0:T(256)}", 1200, 2048),
        ("f32[]{:T(128)}", 4, 512),
        ("pred[3,5]{1,0}", 15, 15),
    ],
)
def test_arrays_fill_whole_tiles(kind, size, stored):
    (array,) = hlo.arrays(kind)
    assert array == (size, stored)


def test_a_tuple_has_several_arrays():
    kind = "(f32[4,64]{1,0:T(4,128)}, /*index=1*/s32[2]{0:T(128)})"
    assert [array.stored for array in hlo.arrays(kind)] == [2048, 512]


def test_instructions_and_the_files_they_were_traced_in():
    program = hlo.parse(TEXT)
    assert program.entry == "main.9_spmd"
    forward = program.computations[program.entry]["fusion.forward"]
    assert (forward.opcode, forward.called) == ("fusion", "fused_computation.forward")
    assert forward.operands == ("param.1", "param.2") and forward.stored == 2 * MAP
    assert [file.rpartition("/")[2] for file in program.files[forward.frame]] == [
        "norm.py", "mcl.py", "train_step.py",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="ENTRY"):
        hlo.parse("HloModule empty")


def test_every_operation_is_in_one_kind():
    found = operations.account(TEXT, compilers_bytes=1e6, longest=2)
    rows = {row["kind"]: row for row in found["kinds"]}
    image = 3 * 16 * 128  # one uint8 image in tiles, of the four there are
    expected = {
        "views: the rest": image + 4 * image,  # reads the slice alone; writes float32
        "backbone: convolution, forward": 2 * MAP + 2 * KERNEL + 2 * MAP,
        "pyramid and head: moved in memory": 4 * MAP,
        "backbone: convolution, input gradient": 2 * MAP + 2 * KERNEL + 2 * MAP + 2048,
        "backbone: convolution, kernel gradient": 4 * MAP + 2 * KERNEL,
        "collectives": 4 * KERNEL,
        "optimizer: the rest": 6 * KERNEL,
    }
    assert {kind: row["bytes"] for kind, row in rows.items()} == expected
    assert all(row["operations"] == 1 for row in rows.values())
    assert found["bytes"] == sum(expected.values()) and found["compilers_bytes"] == 1e6
    assert rows["pyramid and head: moved in memory"]["padding"] == 2 * MAP
    # what enters and leaves, without padding: the kernel's gradient reads two maps, gives a kernel
    assert rows["backbone: convolution, kernel gradient"]["floor"] == 2 * MAP + KERNEL
    assert [row["name"] for row in found["longest"]] == ["fusion.update", "all-reduce.1"]
    text = operations.as_text(found)
    assert "backbone: convolution, kernel gradient" in text and "fusion.update" in text
    assert f"all: {found['bytes'] / 1e9:.3f} GB" in text


def test_a_program_of_this_machines_compiler_is_read():
    step = jax.jit(lambda x: jnp.tanh(x @ x)[:4]).lower(jnp.ones((64, 64))).compile()
    counted = step.cost_analysis()["bytes accessed"]
    found = operations.account(step.as_text(), counted, longest=1)
    assert 0.5 * counted < found["bytes"] < 2 * counted
