"""Breaks the CUDA kernels in one place at a time and sees whether an emulated test fails.

    python tests/mutate_kernels.py [--list] [--only N ...] [--tests ARGUMENTS] [--timeout SECONDS]

A tool to run by hand; pytest does not collect it. It removes every barrier and every fence, relaxes
every bounds check, and breaks a few other lines of the kernels and of what they share, in copies of
the sources in a temporary folder. Each mutation is compiled and tested, two at a time, in some 40
minutes altogether. Prints which test killed it, and with what. The exit status is 1 if one
survived that is not known to change nothing (``EQUIVALENT``), if one of those was killed, or if one
is not C++.

The places are found by their text, which must occur exactly once: where the kernels have changed,
the script says which rule has to follow.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

ROOT = Path(__file__).resolve().parent.parent
REDUCE, TENSORS, WALK, KERNELS, PENALTIES, PENALTIES_HOST, PARAMETERS, *AFFINES, BANDS = FILES = (
    "csrc/common/reduce.cuh",
    "csrc/common/tensor_table.cuh",
    "csrc/cuda/walk.cuh",
    "csrc/cuda/spectral_norm.cuh",
    "csrc/cuda/gradient_penalty.cuh",
    "csrc/cuda/gradient_penalty.cu",
    "csrc/cuda/ada_parameters.cuh",
    "csrc/cuda/affine_resample.cuh",
    "csrc/cuda/affine_resample_transpose.cuh",
    "csrc/cuda/image_filter.cuh",
)
AFFINE, GATHER = AFFINES
WORKERS = 2

#: Below a minute where nothing is broken. Those that find most come first.
TESTS = [
    "tests/spectral_norm/test_spectral_norm.py::test_many_weights_in_one_call",
    "tests/spectral_norm/test_spectral_norm_autograd.py::test_values",
    "tests/spectral_norm/test_spectral_norm_autograd.py::test_gradient_penalty",
    "tests/spectral_norm/test_spectral_norm.py",
    *("-k", "emu and not (large and (few or channels_last or transposed)) and not beyond"),
]

#: Of files that a program of tests/cpp tests instead: its name.
PROGRAMS = {
    **dict.fromkeys((PENALTIES, PENALTIES_HOST), "test_emu_gradient_penalty"),
    PARAMETERS: "test_emu_ada_parameters",
    **dict.fromkeys(AFFINES, "test_emu_affine_resample"),
    BANDS: "test_emu_image_filter",
}

#: What every file has them removed of, wherever they are.
REMOVED = ("sync_threads();", "fence();")

#: File, name, text and what it becomes. The text is in the file once.
RULES = [
    # --- augmentation's parameters
    (PARAMETERS, "compute: a sample too many", "i >= args.batch", "i > args.batch"),
    (PARAMETERS, "strengths: one for all groups", "args.p_count == 1 ? 0 : k", "0"),
    (PARAMETERS, "compute: colour without offsets", "column <= channels", "column < channels"),
    # --- affine resampling
    (AFFINE, "fill: the fourth axis is not", "k < 4 * kPoints;", "k < 3 * kPoints;"),
    (AFFINE, "at: u is not carried", "if (p.share_u >= 1) ++p.u, p.share_u -= 1;", ""),
    (
        GATHER,
        "cotangent: rows beyond the image",
        "x >= width(r.out) || y >= height(r.out)) return 0;",
        "x >= width(r.out)) return 0;",
    ),
    (GATHER, "cotangent: cutout is forgotten", "if (!is_kept(r, sample, y, x)) return 0;", ""),
    (
        AFFINE,
        "plain_tile: rows beyond the image",
        "  if (x >= width(r.out) || y >= height(r.out)) return;\n  int from_x",
        "  if (x >= width(r.out)) return;\n  int from_x",
    ),
    (
        GATHER,
        "gather_tile: another column of mirror images",
        "kx <= across.last; ++kx) {\n      // The tile's",
        "kx < across.last; ++kx) {\n      // The tile's",
    ),
    (
        GATHER,
        "put: columns beyond the image",
        "if (block.x() >= width(r.in) || block.y() >= height(r.in)) return;",
        "if (block.y() >= height(r.in)) return;",
    ),
    (
        AFFINE,
        "filter_along_axes: axes are not swapped",
        "across = f.swapped ? y : x, down = f.swapped ? x : y;",
        "across = x, down = y;",
    ),
    (AFFINE, "weight_of: a tap less", "tap < 0 || tap >=", "tap < 1 || tap >="),
    (AFFINE, "filter_tile: any footprint fits", "straight && footprint.fits();", "straight;"),
    (
        GATHER,
        "gather_along_axes: mirrors are seen twice",
        "g.across.shows(kx, x) && g.down.shows(ky, y);",
        "g.across.shows(kx, x);",
    ),
    (
        GATHER,
        "gather_along_axes: axes are not swapped",
        "(swapped ? column * kPitch + row : row * kPitch + column)",
        "(row * kPitch + column)",
    ),
    (GATHER, "outputs_of: a row less", "(high + 5) >> 1,", "(high + 3) >> 1,"),
    (GATHER, "gather: what gather_slowly has", "if (g.usable && !g.copy && !g.few) return;", ""),
    (GATHER, "gather_slowly: what gather has", "if (!far && (g.copy || g.few)) return;", ""),
    # --- the filter by bands
    (BANDS, "tile_of: rows have no end", "rows < kRows ? rows : kRows", "kRows"),
    (
        BANDS,
        "tile_of: columns have no end",
        "columns < kColumns<Acc> ? columns : kColumns<Acc>",
        "kColumns<Acc>",
    ),
    (BANDS, "look_up: one less", "i < count;", "i < count - 1;"),
    (BANDS, "at_border: the right side is none", "(x == 0 || x == l.width - 1)", "(x == 0)"),
    (BANDS, "filter_run: a tap less", "d >= -kReach && d <= kReach", "d > -kReach && d <= kReach"),
    (BANDS, "filter: copied on three gains", " && g[3] == 1)", ")"),
    (BANDS, "filter: rows beyond the tile", "if (row >= tile.rows) continue;", ""),
    (
        BANDS,
        "filter: cutout is forgotten in the transpose",
        "value = is_cut(row, column) ? Acc{0}",
        "value = false ? Acc{0}",
    ),
    # --- sums over a block, the last block
    (REDUCE, "block_sum: one step less", "lanes = kWarp / 2;", "lanes = kWarp / 4;"),
    (
        REDUCE,
        "block_sum: every thread stores",
        "if (thread_id() % kWarp == 0) warp_sums",
        "warp_sums",
    ),
    (REDUCE, "block_sum: a warp more", "warp < kWarps;", "warp <= kWarps;"),
    (REDUCE, "block_sum: a warp less", "warp < kWarps;", "warp < kWarps - 1;"),
    (REDUCE, "block_sum_of: one more", "i < count;", "i <= count;"),
    (
        REDUCE,
        "is_last_block: a thread of every warp",
        "if (thread_id() == 0) {",
        "if (thread_id() % kWarp == 0) {",
    ),
    (REDUCE, "is_last_block: never", "== count - 1;", "== count;"),
    (REDUCE, "is_last_block: always", "== count - 1;", ">= 0;"),
    (REDUCE, "is_last_block: one before the last", "== count - 1;", ">= count - 2;"),
    # --- tiles
    (
        WALK,
        "tile_of: stripes have no end",
        "stripe + walk.stripe < across ? stripe + walk.stripe : across",
        "stripe + walk.stripe",
    ),
    (
        WALK,
        "tile_of: stripes end one later",
        "stripe + walk.stripe < across ? stripe + walk.stripe : across",
        "stripe + walk.stripe < across ? stripe + walk.stripe + 1 : across",
    ),
    (
        WALK,
        "tile_of: parts have no end",
        "part + walk.part < deep ? part + walk.part : deep",
        "part + walk.part",
    ),
    (
        WALK,
        "tile_of: parts end one later",
        "part + walk.part < deep ? part + walk.part : deep",
        "part + walk.part < deep ? part + walk.part + 1 : deep",
    ),
    (TENSORS, "owner_of: the tensor before", "first_tile <= tile)", "first_tile < tile)"),
    # --- the inside of a tile
    (
        WALK,
        "for_each_row: lanes beyond the span",
        "lane * N < walk.span && n < tile.stripe_end;",
        "n < tile.stripe_end;",
    ),
    (
        WALK,
        "for_each_row: a lane beyond the span",
        "lane * N < walk.span && n < tile.stripe_end;",
        "lane * N <= walk.span && n < tile.stripe_end;",
    ),
    (
        WALK,
        "for_each_row: lanes beyond the stripe",
        "lane * N < walk.span && n < tile.stripe_end;",
        "lane * N < walk.span;",
    ),
    (
        WALK,
        "for_each_row: a lane beyond the stripe",
        "lane * N < walk.span && n < tile.stripe_end;",
        "lane * N < walk.span && n <= tile.stripe_end;",
    ),
    (WALK, "for_each_row: every lane", "if (!active) continue;", ""),
    (
        WALK,
        "for_each_row: stages of whole groups only",
        "walk.group < walk.span ? walk.group : walk.span;\n"
        "  const int rows = p.data ? kStage / window",
        "walk.group;\n  const int rows = p.data ? kStage / window + (kStage < window)",  # it ends
    ),
    (
        WALK,
        "for_each_row: stages have no end",
        "k0 + rows < tile.part_end ? k0 + rows : tile.part_end;",
        "k0 + rows;",
    ),
    (
        WALK,
        "for_each_row: stages end one later",
        "k0 + rows < tile.part_end ? k0 + rows : tile.part_end;",
        "k0 + rows < tile.part_end ? k0 + rows + 1 : tile.part_end;",
    ),
    (WALK, "for_each_row: one row more to a stage", "kStage / window", "kStage / window + 1"),
    (WALK, "for_each_row: one entry more", "i < (k1 - k0) * window;", "i <= (k1 - k0) * window;"),
    (WALK, "for_each_row: entries beyond the group", "if (c < walk.group) stage[i]", "stage[i]"),
    (
        WALK,
        "for_each_row: an entry beyond the group",
        "if (c < walk.group) stage[i]",
        "if (c <= walk.group) stage[i]",
    ),
    (WALK, "for_each_row: one row more", "k < k1;", "k <= k1;"),
    (WALK, "for_each_row: rows have no end", "k < k1;", "k < k0 + rows;"),
    (
        WALK,
        "for_each_row: a window of one as any other",
        "(window == 1 ? 0 : (n - first) % window + j)",
        "((n - first) % window + j)",
    ),
    # --- products
    (
        KERNELS,
        "multiply_across: one step less",
        "lanes = walk.lanes; lanes < kWarp;",
        "lanes = walk.lanes * 2; lanes < kWarp;",
    ),
    (
        KERNELS,
        "multiply_across: every lane stores",
        "if (thread_id() % kWarp < walk.lanes)",
        "if (true)",
    ),
    (
        KERNELS,
        "multiply_across: spans have no end",
        "first + walk.span < tile.stripe_end ? first + walk.span : tile.stripe_end;",
        "first + walk.span;",
    ),
    (
        KERNELS,
        "multiply_across: spans end with the stripe",
        "first + walk.span < tile.stripe_end ? first + walk.span : tile.stripe_end;",
        "tile.stripe_end;",
    ),
    (KERNELS, "multiply_across: one sum more", "i < end - first;", "i <= end - first;"),
    (KERNELS, "multiply_across: a warp less", "k < kWarps;", "k < kWarps - 1;"),
    (KERNELS, "multiply_across: a warp more", "k < kWarps;", "k <= kWarps;"),
    (
        KERNELS,
        "multiply_along: one zero more",
        "i < rows; i += kThreads) sums[i] = 0;",
        "i <= rows; i += kThreads) sums[i] = 0;",
    ),
    (
        KERNELS,
        "multiply_along: stages have no end",
        "first + kStage < tile.part_end ? kStage : tile.part_end - first;",
        "kStage;",
    ),
    (
        KERNELS,
        "multiply_along: a part in one stage",
        "first + kStage < tile.part_end ? kStage : tile.part_end - first;",
        "tile.part_end - first;",
    ),
    (
        KERNELS,
        "multiply_along: one entry more",
        "i < count; i += kThreads)",
        "i <= count; i += kThreads)",
    ),
    (
        KERNELS,
        "multiply_along: no whole warps",
        "row - slot < rows;",
        "row < rows;",
    ),
    (
        KERNELS,
        "multiply_along: rows one further",
        "row - slot < rows;",
        "row - slot <= rows;",
    ),
    (KERNELS, "multiply_along: rows beyond the tile", "if (row < rows) {", "{"),
    (
        KERNELS,
        "multiply_along: a row beyond the tile",
        "if (row < rows) {",
        "if (row <= rows) {",
    ),
    (
        KERNELS,
        "multiply_along: one column more",
        "i < count; i += walk.lanes * N)",
        "i <= count; i += walk.lanes * N)",
    ),
    (
        KERNELS,
        "multiply_along: one step less",
        "lanes = 1; lanes < walk.lanes;",
        "lanes = 2; lanes < walk.lanes;",
    ),
    (
        KERNELS,
        "multiply_along: every lane stores",
        "if (lane == 0 && row < rows)",
        "if (row < rows)",
    ),
    (
        KERNELS,
        "multiply_along: sums beyond the tile",
        "if (lane == 0 && row < rows)",
        "if (lane == 0)",
    ),
    (
        KERNELS,
        "multiply_along: a sum beyond the tile",
        "if (lane == 0 && row < rows)",
        "if (lane == 0 && row <= rows)",
    ),
    (
        KERNELS,
        "multiply_along: one row more stored",
        "i < rows; i += kThreads) store(",
        "i <= rows; i += kThreads) store(",
    ),
    (
        KERNELS,
        "product: every block adds up",
        "if (!is_last_block(layer.tickets + tile.stripe_index, walk.parts)) return;",
        "is_last_block(layer.tickets + tile.stripe_index, walk.parts);",
    ),
    (
        KERNELS,
        "product: one result more",
        "i < tile.stripe_end / fold;",
        "i <= tile.stripe_end / fold;",
    ),
    (
        KERNELS,
        "product: results of all stripes",
        "i < tile.stripe_end / fold;",
        "i < outputs / fold;",
    ),
    (KERNELS, "product: one column more to an entry", "k < fold;", "k <= fold;"),
    (KERNELS, "product: one part more", "part < walk.parts;", "part <= walk.parts;"),
    (KERNELS, "product: one part less", "part < walk.parts;", "part < walk.parts - 1;"),
    (
        KERNELS,
        "product: every thread stores the square",
        "if (thread_id() == 0) {\n    store(layer.squares",
        "{\n    store(layer.squares",
    ),
    (
        KERNELS,
        "product: the ticket is not reset",
        "store(layer.tickets + tile.stripe_index, 0);",
        "",
    ),
    # --- scaling, the end of the power iteration
    (
        KERNELS,
        "scale_range: vectors only",
        "begin + (end - begin) / N * N;",
        "end;",
    ),
    (
        KERNELS,
        "scale_range: one vector more",
        "i < whole;",
        "i <= whole;",
    ),
    (
        KERNELS,
        "scale_range: vectors to the end",
        "i < whole;",
        "i < end;",
    ),
    (
        KERNELS,
        "scale_range: no rest",
        "i = whole + thread_id(); i < end;",
        "i = end + thread_id(); i < end;",
    ),
    (
        KERNELS,
        "scale_range: one element more",
        "i = whole + thread_id(); i < end;",
        "i = whole + thread_id(); i <= end;",
    ),
    (
        KERNELS,
        "finish: one tile of vectors more",
        "tile >= layer.vector_tiles",
        "tile > layer.vector_tiles",
    ),
    (
        KERNELS,
        "finish: tiles have no end",
        "table.tile;\n    const int64_t end = begin + table.tile < layer.size"
        " ? begin + table.tile : layer.size;",
        "table.tile;\n    const int64_t end = begin + table.tile;",
    ),
    (
        KERNELS,
        "finish: vectors beyond the tile",
        "i < (tile + 1) * kStage && i < size;",
        "i < size;",
    ),
    (
        KERNELS,
        "finish: an entry beyond the tile",
        "i < (tile + 1) * kStage && i < size;",
        "i <= (tile + 1) * kStage && i < size;",
    ),
    (
        KERNELS,
        "finish: entries beyond the end",
        "i < (tile + 1) * kStage && i < size;",
        "i < (tile + 1) * kStage;",
    ),
    (
        KERNELS,
        "finish: an entry beyond the end",
        "i < (tile + 1) * kStage && i < size;",
        "i < (tile + 1) * kStage && i <= size;",
    ),
    (KERNELS, "finish: a row more", "i < layer.rows)", "i <= layer.rows)"),
    (KERNELS, "finish: the padding of u as rows", "i < layer.rows)", "i < u_size)"),
    (KERNELS, "finish: u padded by one more", "(i < u_size)", "(i <= u_size)"),
    (
        KERNELS,
        "finish: a column more",
        "i - u_size < layer.cols)",
        "i - u_size <= layer.cols)",
    ),
    (KERNELS, "finish: the padding of v as columns", "i - u_size < layer.cols)", "true)"),
    (KERNELS, "finish: every tile stores sigma", "if (tile == 0) {", "{"),
    (
        KERNELS,
        "finish: every thread stores sigma",
        "if (thread_id() == 0) {\n      store(static_cast<Acc*>(layer.sigma_out), sigma);",
        "{\n      store(static_cast<Acc*>(layer.sigma_out), sigma);",
    ),
    (
        KERNELS,
        "finish: sigma padded by one more",
        "thread_id() < layer.sigma_padding)",
        "thread_id() <= layer.sigma_padding)",
    ),
    (
        KERNELS,
        "finish: sigma is not padded",
        "thread_id() < layer.sigma_padding)",
        "thread_id() + 1 < layer.sigma_padding)",
    ),
    # --- with constant u and v
    (
        KERNELS,
        "column_entries: beyond the stripe",
        "tile.stripe_end - first < layer.walk.span ? tile.stripe_end - first : layer.walk.span;",
        "layer.walk.span;",
    ),
    (
        KERNELS,
        "column_entries: beyond the span",
        "tile.stripe_end - first < layer.walk.span ? tile.stripe_end - first : layer.walk.span;",
        "tile.stripe_end - first;",
    ),
    (
        KERNELS,
        "column_entries: one more",
        "i < end; i += kThreads)\n    columns[i]",
        "i <= end; i += kThreads)\n    columns[i]",
    ),
    (
        KERNELS,
        "column_entries: lanes beyond the end",
        "lane * N + j < end ? columns[lane * N + j] : Accumulation<T>{0};",
        "columns[lane * N + j];",
    ),
    (
        KERNELS,
        "column_entries: a lane beyond the end",
        "lane * N + j < end ?",
        "lane * N + j <= end ?",
    ),
    (
        KERNELS,
        "add_tiles: every thread stores",
        "if (thread_id() == 0) store(static_cast<Acc*>(layer.sums)",
        "store(static_cast<Acc*>(layer.sums)",
    ),
    (
        KERNELS,
        "normalize: every tile stores sigma",
        "if (tile == 0 && thread_id() == 0)",
        "if (thread_id() == 0)",
    ),
    (
        KERNELS,
        "normalize: every thread stores sigma",
        "if (tile == 0 && thread_id() == 0)",
        "if (tile == 0)",
    ),
    (
        KERNELS,
        "normalize: tiles have no end",
        "table.tile;\n  const int64_t end = begin + table.tile < layer.size"
        " ? begin + table.tile : layer.size;",
        "table.tile;\n  const int64_t end = begin + table.tile;",
    ),
    (
        KERNELS,
        "double_backward: every tile stores sigma",
        "if (index == 0 && thread_id() == 0)",
        "if (thread_id() == 0)",
    ),
    (
        KERNELS,
        "double_backward: every thread stores sigma",
        "if (index == 0 && thread_id() == 0)",
        "if (index == 0)",
    ),
    # --- penalties: chunks, and the rows of numbers
    (
        PENALTIES,
        "chunk_of: chunks have no end",
        "left < item.chunk ? static_cast<int>(left) : item.chunk",
        "item.chunk",
    ),
    (
        PENALTIES,
        "chunk_of: to the end of the sample",
        "left < item.chunk ? static_cast<int>(left) : item.chunk",
        "static_cast<int>(left)",
    ),
    (
        PENALTIES,
        "chunk_of: chunks end one later",
        "left < item.chunk ? static_cast<int>(left) : item.chunk",
        "left < item.chunk ? static_cast<int>(left) + 1 : item.chunk",
    ),
    (PENALTIES, "chunk_of: of the first sample", "sample * item.size + begin}", "begin}"),
    (
        PENALTIES,
        "value_index: reduced or not",
        "return n.reduced ? row : static_cast<int64_t>(row) * n.batch + sample;",
        "return static_cast<int64_t>(row) * n.batch + sample;",
    ),
    (PENALTIES, "value_index: of the first row", "n.reduced ? row :", "n.reduced ? 0 :"),
    (
        PENALTIES,
        "norm_of: of the first row",
        "(n.norms) + static_cast<int64_t>(row) * n.batch + sample);",
        "(n.norms) + sample);",
    ),
    (
        PENALTIES,
        "sample_of: the weight of the first sample",
        "number<Acc>(n.sample_weight, sample, 1)",
        "number<Acc>(n.sample_weight, 0, 1)",
    ),
    # --- penalties: sums
    (
        PENALTIES,
        "multiply: one element more",
        "i < chunk.count; i += kThreads * N) {\n    const auto x",
        "i <= chunk.count; i += kThreads * N) {\n    const auto x",
    ),
    (
        PENALTIES,
        "multiply: elements beyond the sample",
        "i < chunk.count; i += kThreads * N) {\n    const auto x",
        "i < item.chunk; i += kThreads * N) {\n    const auto x",
    ),
    (
        PENALTIES,
        "products: tiles of the whole table",
        "block_id() - item.first_tile);\n  const Acc total",
        "block_id());\n  const Acc total",
    ),
    (PENALTIES, "products: always vectors", "block_sum(item.vectors ?", "block_sum(true ?"),
    (
        PENALTIES,
        "products: every thread stores",
        "if (thread_id() == 0)\n    store(static_cast<Acc*>(table.numbers.partial)",
        "store(static_cast<Acc*>(table.numbers.partial)",
    ),
    (
        PENALTIES,
        "products: samples overlap",
        "(chunk.sample) * table.numbers.columns",
        "(chunk.sample) * item.chunks",
    ),
    (PENALTIES, "products: gradients overlap", "item.column +\n              chunk", "chunk"),
    (
        PENALTIES,
        "products: chunks overlap",
        "item.column +\n              chunk.index",
        "item.column",
    ),
    (
        PENALTIES,
        "for_each_sum: one turn",
        "first < n.batch; first +=",
        "first < 1; first +=",
    ),
    (
        PENALTIES,
        "for_each_sum: sums beyond the batch",
        "if (sample < n.batch)\n      for (",
        "for (",
    ),
    (
        PENALTIES,
        "for_each_sum: a sum beyond the batch",
        "if (sample < n.batch)\n      for (",
        "if (sample <= n.batch)\n      for (",
    ),
    (PENALTIES, "for_each_sum: from the first column", "c = begin + lane;", "c = lane;"),
    (PENALTIES, "for_each_sum: one column more", "c < end;", "c <= end;"),
    (PENALTIES, "for_each_sum: a column of every lane", "c += n.lanes)", "c = end)"),
    (PENALTIES, "for_each_sum: one step less", "lanes = n.lanes / 2;", "lanes = n.lanes / 4;"),
    (
        PENALTIES,
        "for_each_sum: not the last step",
        "lanes > 0; lanes /= 2)",
        "lanes > 1; lanes /= 2)",
    ),
    (
        PENALTIES,
        "for_each_sum: every lane",
        "if (lane == 0 && sample < n.batch) f",
        "if (sample < n.batch) f",
    ),
    (
        PENALTIES,
        "for_each_sum: samples beyond the batch",
        "if (lane == 0 && sample < n.batch) f",
        "if (lane == 0) f",
    ),
    (
        PENALTIES,
        "for_each_sum: a sample beyond the batch",
        "if (lane == 0 && sample < n.batch) f",
        "if (lane == 0 && sample <= n.batch) f",
    ),
    (
        PENALTIES,
        "for_each_row: one row for all",
        "if (!n.per_tensor) return f(0, 0, n.columns);",
        "if (n.columns) return f(0, 0, n.columns);",
    ),
    (
        PENALTIES,
        "for_each_row: a row for each",
        "if (!n.per_tensor) return f(0, 0, n.columns);",
        "",
    ),
    (PENALTIES, "for_each_row: one row more", "k < table.count;", "k <= table.count;"),
    (PENALTIES, "for_each_row: one row less", "k < table.count;", "k < table.count - 1;"),
    (
        PENALTIES,
        "for_each_row: columns to the end",
        "item.column + item.chunks);",
        "n.columns);",
    ),
    (
        PENALTIES,
        "finish: norms of the first row",
        "(n.norms_out) + static_cast<int64_t>(row) * n.batch + sample",
        "(n.norms_out) + sample",
    ),
    (
        PENALTIES,
        "finish: values of samples, reduced too",
        "if (!n.reduced) store(static_cast<Acc*>(n.values)",
        "store(static_cast<Acc*>(n.values)",
    ),
    (
        PENALTIES,
        "finish: sums of rows, not reduced too",
        "if (n.reduced && thread_id() == 0) store(static_cast<Acc*>(n.values)",
        "if (thread_id() == 0) store(static_cast<Acc*>(n.values)",
    ),
    (
        PENALTIES,
        "finish: every thread stores",
        "if (n.reduced && thread_id() == 0) store(static_cast<Acc*>(n.values)",
        "if (n.reduced) store(static_cast<Acc*>(n.values)",
    ),
    (
        PENALTIES,
        "finish_double: products of the first row",
        "(n.products) + static_cast<int64_t>(row) * n.batch + sample, t)",
        "(n.products) + sample, t)",
    ),
    (
        PENALTIES,
        "finish_double: values of samples, reduced too",
        "if (!n.reduced) store(static_cast<Acc*>(n.d_seed)",
        "store(static_cast<Acc*>(n.d_seed)",
    ),
    (
        PENALTIES,
        "finish_double: sums of rows, not reduced too",
        "if (n.reduced && thread_id() == 0) store(static_cast<Acc*>(n.d_seed)",
        "if (thread_id() == 0) store(static_cast<Acc*>(n.d_seed)",
    ),
    (
        PENALTIES,
        "finish_double: every thread stores",
        "if (n.reduced && thread_id() == 0) store(static_cast<Acc*>(n.d_seed)",
        "if (n.reduced) store(static_cast<Acc*>(n.d_seed)",
    ),
    (
        PENALTIES,
        "finish_double: the weight's gradient unasked",
        "if (n.d_sample_weight) {",
        "{",
    ),
    (
        PENALTIES,
        "finish_double: the weight's gradient of the last row",
        "(row == 0 ? Acc{0} : load(d_weight)) +",
        "",
    ),
    (
        PENALTIES,
        "finish_double: the weight's gradient from anything",
        "(row == 0 ? Acc{0} : load(d_weight)) +",
        "load(d_weight) +",
    ),
    # --- penalties: gradients
    (
        PENALTIES,
        "combine: one element more",
        "i < chunk.count; i += kThreads * N) {\n    const auto g",
        "i <= chunk.count; i += kThreads * N) {\n    const auto g",
    ),
    (
        PENALTIES,
        "combine: elements beyond the sample",
        "i < chunk.count; i += kThreads * N) {\n    const auto g",
        "i < item.chunk; i += kThreads * N) {\n    const auto g",
    ),
    (
        PENALTIES,
        "backward: tiles of the whole table",
        "block_id() - item.first_tile);\n  const auto s = sample_of(n, norm_of(n, item.row, "
        "chunk.sample), item.row, chunk.sample);\n  const Acc factor",
        "block_id());\n  const auto s = sample_of(n, norm_of(n, item.row, "
        "chunk.sample), item.row, chunk.sample);\n  const Acc factor",
    ),
    (
        PENALTIES,
        "backward: always vectors",
        "if (item.vectors)\n    combine<T, false",
        "if (true)\n    combine<T, false",
    ),
    (
        PENALTIES,
        "backward: the weight's gradient unasked",
        "if (!n.d_sample_weight || item.column",
        "if (item.column",
    ),
    (
        PENALTIES,
        "backward: every block adds up",
        "item.column + chunk.index > 0 || thread_id() > 0",
        "thread_id() > 0",
    ),
    (
        PENALTIES,
        "backward: the first block of every gradient adds up",
        "item.column + chunk.index > 0 ||",
        "chunk.index > 0 ||",
    ),
    (
        PENALTIES,
        "backward: every thread adds up",
        "item.column + chunk.index > 0 || thread_id() > 0",
        "item.column + chunk.index > 0",
    ),
    (PENALTIES, "backward: one row more", "row < n.rows;", "row <= n.rows;"),
    (PENALTIES, "backward: one row less", "row < n.rows;", "row < n.rows - (n.rows > 1);"),
    (
        PENALTIES,
        "double_backward: tiles of the whole table",
        "block_id() - item.first_tile);\n  const auto s = sample_of(n, norm_of(n, item.row, "
        "chunk.sample), item.row, chunk.sample);\n  const Acc t",
        "block_id());\n  const auto s = sample_of(n, norm_of(n, item.row, "
        "chunk.sample), item.row, chunk.sample);\n  const Acc t",
    ),
    (
        PENALTIES,
        "double_backward: always vectors",
        "if (item.vectors)\n    combine<T, true",
        "if (true)\n    combine<T, true",
    ),
    (
        PENALTIES,
        "double_backward: products of the first row",
        "static_cast<int64_t>(item.row) * n.batch + chunk.sample);",
        "chunk.sample);",
    ),
    # --- penalties: tables
    (PENALTIES_HOST, "Plan: vectors across samples", "x.size % kVector<T> == 0 && ", ""),
    (PENALTIES_HOST, "Plan: g anywhere", "aligned(x.g) && ", ""),
    (PENALTIES_HOST, "Plan: h anywhere", "aligned(x.h) && ", ""),
    (PENALTIES_HOST, "Plan: out anywhere", "aligned(x.h) && aligned(x.out)", "aligned(x.h)"),
    (
        PENALTIES_HOST,
        "Plan: one row for all",
        "static_cast<int>(p.per_tensor ? k : 0)",
        "0",
    ),
    (PENALTIES_HOST, "Plan: the same columns for all", "column += chunks;", "column = chunks;"),
    (
        PENALTIES_HOST,
        "Plan: tiles of one sample",
        "tiles_.back() += chunks * p.batch;",
        "tiles_.back() += chunks;",
    ),
    (
        PENALTIES_HOST,
        "launch_rows: the last table only",
        "p_.per_tensor ? 0 : tables_.size() - 1",
        "tables_.size() - 1",
    ),
]

#: Mutations that change nothing but speed, and why no test can tell. By name.
EQUIVALENT = {
    "gather: what gather_slowly has": "the second launch writes over it: slower, not wrong",
    "multiply_along: rows one further": "a turn of whole warps in which no row is below `rows`",
}


@dataclass(frozen=True)
class Mutation:
    name: str
    file: str
    begin: int  # of what is replaced, in the file's text
    end: int
    replacement: str

    def apply(self, text: str) -> str:
        return text[: self.begin] + self.replacement + text[self.end :]


def function_at(text: str, position: int) -> str:
    """The function that a position is in: the last that was declared before, at a line's begin."""
    declared = r"^(?:DEVICE [\w:<> ]+? )?(\w+)\((?:const\b|TABLE|T\b|int\*)"
    return re.findall(declared, text[:position], re.MULTILINE)[-1]


def find_mutations(root: Path) -> list[Mutation]:
    found = []
    texts = {file: (root / file).read_text() for file in FILES}
    for removed in REMOVED:
        for file, text in texts.items():
            for match in re.finditer(rf"\b{re.escape(removed)}", text):
                line = text.count("\n", 0, match.start()) + 1
                where = f"{function_at(text, match.start())}: no {removed[:-1]} at line {line}"
                found.append(Mutation(where, file, *match.span(), ";"))
    for file, name, old, new in RULES:
        if texts[file].count(old) != 1:
            sys.exit(
                f"{name!r}: expected once, in {file}, not {texts[file].count(old)} times:\n{old}"
            )
        begin = texts[file].index(old)
        found.append(Mutation(name, file, begin, begin + len(old), new))
    return found


class Copy:
    """What is needed to build and test, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ignored = shutil.ignore_patterns("__pycache__", "results")
        for name in ("csrc", "tests", "gankernels"):
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        for name in ("CMakeLists.txt", "pyproject.toml"):
            shutil.copy(ROOT / name, folder / name)

    def run(self, *command: str, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
        tools = str(Path(sys.executable).parent)  # cmake, where it is installed next to Python
        environment = {
            **os.environ,
            "PATH": f"{tools}:{os.environ['PATH']}",
            "GANKERNELS_EMU": str(self.folder / "build/emu"),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "1000",
        }
        return subprocess.run(
            command,
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )

    def configure(self) -> None:
        options = (
            "-DGANKERNELS_EMU_MODULE=ON",
            f"-DPython_EXECUTABLE={sys.executable}",
            "-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O1",  # half the time of the default
        )
        done = self.run("cmake", "-S", ".", "-B", "build/emu", *options)
        if done.returncode:
            sys.exit(done.stdout)

    def build(self, program: str | None) -> str | None:
        """What the compiler said, if it refused."""
        target = program or "gankernels_emu"
        done = self.run("cmake", "--build", "build/emu", "--target", target)
        return done.stdout if done.returncode else None

    def test(self, program: str | None, tests: list[str], timeout: float) -> str | None:
        """The first test that failed and its error, or None."""
        if program:
            return self.test_program(program, timeout)
        options = ("-x", "-q", "--tb=short", "-p", "no:cacheprovider")
        try:
            done = self.run(sys.executable, "-m", "pytest", *options, *tests, timeout=timeout)
        except subprocess.TimeoutExpired:
            return f"does not end within {timeout:.0f} s"
        if done.returncode == 0:
            return None
        failed = re.search(r"^(?:FAILED|ERROR) (?:tests/)?(.*)", done.stdout, re.MULTILINE)
        if not failed:
            return f"exit {done.returncode}: {done.stdout[-300:]}"
        return re.sub(r"RuntimeError: check_status, \S+, ", "", failed[1])

    def test_program(self, program: str, timeout: float) -> str | None:
        try:
            done = self.run(f"build/emu/{program}", timeout=timeout)
        except subprocess.TimeoutExpired:
            return f"does not end within {timeout:.0f} s"
        if done.returncode == 0:
            return None
        return f"{program}: {done.stdout.partition(chr(10))[0] or f'exit {done.returncode}'}"

    def try_out(self, mutation: Mutation, tests: list[str], timeout: float) -> str | None:
        """What killed it, or None."""
        file = self.folder / mutation.file
        text = file.read_text()
        file.write_text(mutation.apply(text))
        program = PROGRAMS.get(mutation.file)
        try:
            refused = self.build(program)
            return f"NOT C++\n{refused}" if refused else self.test(program, tests, timeout)
        finally:
            file.write_text(text)


def copies(
    folder: Path, programs: set[str | None], tests: list[str], timeout: float
) -> Iterator[Copy]:
    """Built copies, in which nothing fails yet."""
    found = [Copy(folder / f"copy{i}") for i in range(WORKERS)]

    def prepare(copy: Copy) -> str | None:
        copy.configure()
        for program in programs:
            if failed := copy.build(program) or copy.test(program, tests, timeout):
                return failed
        return None

    with ThreadPoolExecutor(WORKERS) as pool:
        for copy, failed in zip(found, pool.map(prepare, found), strict=True):
            if failed:
                sys.exit(f"without a mutation: {failed}")
            yield copy


def judge(mutation: Mutation, killed: str | None) -> tuple[bool, str]:
    """Whether it is as it should be, and a line that says so."""
    reason = EQUIVALENT.get(mutation.name)
    if killed is None:
        return reason is not None, f"equivalent: {reason}" if reason else "SURVIVED"
    if killed.startswith("NOT C++"):
        return False, killed
    return reason is None, killed if reason is None else f"NOT EQUIVALENT: {killed}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="print the mutations and end")
    parser.add_argument("--only", type=int, nargs="+", metavar="N", help="those of these numbers")
    parser.add_argument("--tests", help="other arguments of pytest", default=shlex.join(TESTS))
    parser.add_argument("--timeout", type=float, default=600, help="seconds for the tests of one")
    args = parser.parse_args()
    tests = shlex.split(args.tests)

    mutations = find_mutations(ROOT)
    unknown = set(EQUIVALENT) - {m.name for m in mutations}
    if unknown:
        sys.exit(f"in EQUIVALENT, but no mutation: {unknown}")
    chosen = [(i, m) for i, m in enumerate(mutations) if args.only is None or i in args.only]
    if args.list:
        for i, mutation in chosen:
            print(f"{i:3}  {mutation.name}")
        return 0

    with tempfile.TemporaryDirectory(prefix="mutate_kernels") as folder:
        free: Queue[Copy] = Queue()
        programs = {PROGRAMS.get(mutation.file) for _, mutation in chosen}
        for copy in copies(Path(folder), programs, tests, args.timeout):
            free.put(copy)
        print("without a mutation: all passed", flush=True)

        def run(numbered: tuple[int, Mutation]) -> bool:
            number, mutation = numbered
            copy = free.get()
            good, said = judge(mutation, copy.try_out(mutation, tests, args.timeout))
            free.put(copy)
            print(f"{number:3}  {mutation.name:48}  {said}", flush=True)
            return good

        with ThreadPoolExecutor(WORKERS) as pool:
            good = list(pool.map(run, chosen))
    print(f"{good.count(True)} of {len(good)} as they should be")
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
