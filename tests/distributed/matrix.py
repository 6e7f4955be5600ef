"""What is tested of spectral normalization and the rest in training at scale.

``python tests/distributed/matrix.py --write`` writes the table of docs/at-scale.md from here;
test_matrix.py looks whether each test that a cell names exists.
"""

from __future__ import annotations

import argparse
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs" / "at-scale.md"
BEGIN = "<!-- from tests/distributed/matrix.py: --write -->\n"
COLUMNS = ("DDP", "FSDP2", "tensor parallel", "checkpoint", "compile", "CUDA graph", "AMP, half")

_NN = "spectral_norm/test_nn_spectral_norm.py::"
_FUSE = "spectral_norm/test_fuse_spectral_norm.py::"
_FSDP = "distributed/test_fsdp.py::test_sharded"
_HALF = _NN + "test_vectors_stay_float32_beside_half_weights"
_PARALLEL = "distributed/test_tensor_parallel.py::test_shards"
_AGAIN = "spectral_norm/test_recompute.py::test_inside"
_COMPILED = "spectral_norm/test_spectral_norm_compile.py::test_compiled_training"
_CAPTURE = "spectral_norm/test_spectral_norm_capture.py::test_training_between_replays"
_PENALTIES = "penalties/test_penalties_training.py::"
_STEP = "training/test_compile_step.py::test_training"
_COMPILED_DDP = "distributed/test_compiled.py::"
_GRAPHED = "training/test_cuda_graphs.py::test_a_capture_has_what_every_step_has"
_MIXED = _PENALTIES + "test_mixed_precision_equals_float32"
_TWO = _PENALTIES + "test_two_processes_equal_one"
_FSDP_PENALTIES = "distributed/test_fsdp_penalties.py::test_penalties"
_STATES = "distributed/test_shared_states.py::"
_ADA = "augment/test_augment_controller.py::"

_WEIGHT_NORM = "distributed/test_fused_weight_norm.py::test_training"
_FUSE_WEIGHTS = "weight_norm/test_fuse_weight_norm.py::"

#: By operator and column the test in tests/, with a remark after "; "; what is not there is not
#: tested.
ROWS: dict[str, dict[str, str]] = {
    "spectral norm, hook or parametrization": {
        "DDP": _NN + "test_distributed_data_parallel",
        "FSDP2": _FSDP,
        "tensor parallel": _PARALLEL,
        "checkpoint": _AGAIN,
        "compile": _COMPILED,
        "CUDA graph": _CAPTURE,
        "AMP, half": _HALF,
    },
    "`fuse_spectral_norm`": {
        "DDP": "distributed/test_fsdp.py::test_hybrid; the replicas of shards",
        "FSDP2": _FSDP + "; one all-reduce, or two",
        "tensor parallel": _PARALLEL,
        "checkpoint": _AGAIN,
        "compile": _FUSE + "test_compiles_in_one_graph; fuse first",
        "CUDA graph": _CAPTURE,
        "AMP, half": _HALF,
    },
    "`fuse_weight_norm`": {
        "DDP": _WEIGHT_NORM,
        "FSDP2": _WEIGHT_NORM + "; layer by layer, as weights are gathered",
        "tensor parallel": "distributed/test_fused_weight_norm.py::test_tensor_parallel; "
        "layer by layer, in plain PyTorch",
        "checkpoint": _FUSE_WEIGHTS + "test_checkpointing",
        "compile": _FUSE_WEIGHTS + "test_compiled; layer by layer, as the compiler fuses it",
        "CUDA graph": _FUSE_WEIGHTS + "test_nothing_is_kept_for_the_next_forward",
        "AMP, half": _FUSE_WEIGHTS + "test_autocast",
    },
    "penalties, exact": {
        "DDP": _TWO,
        "FSDP2": _FSDP_PENALTIES + "; weights that stay gathered, refused otherwise",
        "tensor parallel": "distributed/test_tensor_parallel.py::"
        "test_second_derivatives_are_refused; refused: torch loses second derivatives",
        "checkpoint": _AGAIN + "; non-reentrant",
        "compile": _STEP + "; the whole step, `compile_step`",
        "CUDA graph": _GRAPHED,
        "AMP, half": _MIXED,
    },
    'penalties, `"difference"` and `"noise"`': {
        "DDP": _TWO,
        "FSDP2": _FSDP_PENALTIES,
        "tensor parallel": _PARALLEL,
        "checkpoint": _PARALLEL,
        "compile": "penalties/test_critic_step.py::test_compiled; the critic by itself, or the "
        "whole step",
        "CUDA graph": _GRAPHED,
        "AMP, half": _MIXED,
    },
    "`critic_step`": {
        "DDP": _TWO,
        "FSDP2": _FSDP_PENALTIES,
        "compile": _STEP,
        "CUDA graph": _GRAPHED,
        "AMP, half": _MIXED,
    },
    "`compile_step`": {
        "DDP": _COMPILED_DDP + "test_whole_steps",
        "FSDP2": _COMPILED_DDP + "test_refused; refused: torch compiles none of its hooks",
        "compile": _STEP,
        "CUDA graph": "training/test_cuda_graphs.py::test_a_compiled_step_within_a_capture",
        "AMP, half": "training/test_compile_step.py::test_autocast",
    },
    "`ema.AveragedModel`": {
        "FSDP2": "distributed/test_shards.py::test_averages",
        "tensor parallel": "distributed/test_shards.py::test_tensor_parallel_averages",
        "CUDA graph": "spectral_norm/test_spectral_norm_capture.py::test_averages_between_replays",
        "AMP, half": "training/test_ema.py::test_autocast_changes_nothing",
    },
    "`ADAController`": {
        "DDP": _ADA + "test_two_processes_agree_with_one",
        "FSDP2": _STATES + "test_controller",
        "CUDA graph": _ADA + "test_a_captured_update_moves_p_in_every_interval_th_replay",
    },
    "`LeCam`, `PathLength`, `adaptive_weight`": {
        "DDP": _STATES + "test_training",
        "FSDP2": _STATES + "test_training",
    },
    "`clip_weights_`": {"FSDP2": "distributed/test_shards.py::test_clipped"},
}


def table() -> str:
    lines = [f"| | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    notes: list[str] = []
    for name, cells in ROWS.items():
        shown = []
        for column in COLUMNS:
            test, _, remark = cells.get(column, "").partition("; ")
            if remark and remark not in notes:
                notes.append(remark)
            number = f" [{notes.index(remark) + 1}]" if remark else ""
            word = "refused" if remark.startswith("refused") else "tested"
            shown.append(f"{word}{number}" if test else "")
        lines.append(f"| {name} | {' | '.join(shown)} |")
    remarks = [f"[{i}] {text}." for i, text in enumerate(notes, 1)]
    return "\n".join([*lines, "", "  \n".join(remarks), ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", required=True)
    parser.parse_args()
    head, _, tail = DOCS.read_text().partition(BEGIN)
    DOCS.write_text(head + BEGIN + "\n" + table() + tail[tail.index("\n## ") :])


if __name__ == "__main__":
    main()
