"""imagegpt features"""

from __future__ import annotations

import time
from pathlib import Path

from imagegpt.cli.options import (
    DataOptions,
    Json,
    ModelOptions,
    Whole,
    parse_layers,
    place_among_processes,
)
from imagegpt.cli.output import keeping, print_record, working
from imagegpt.engine.features import Pool, layers_of
from imagegpt.extraction import Dtype, Extraction
from imagegpt.feature_file import read_features
from imagegpt.files import check_writable
from imagegpt.parts import folder_of


def features(
    data: str,
    /,
    *,
    out: Path,
    layer: str | None = None,
    pool: Pool = "mean",
    dtype: Dtype = "float32",
    batch_size: Whole | None = None,
    model: ModelOptions | None = None,
    options: DataOptions | None = None,
    json_: Json = False,
) -> None:
    """Write what the network's layers say of pictures: the paper's f^l, one array a layer, with labels.

    Stopped runs continue with the same command, and several processes share the work after
    `torchrun --nproc-per-node 2 --no-python --`.

    Args:
        data: pictures: a folder, a table, shards, a data set and more, perhaps DATA:split; see docs/data.md.
        out: a file that ends in .safetensors, .npz or .parquet.
        layer: blocks that are run, from 0 to the number of blocks: 12, or 4,8,12, or all; default: the middle.
        pool: mean over the ids, or none of it.
        dtype: of the file.
        batch_size: pictures that are run together; default: what is fastest.
        model: which model, and how it runs.
        options: which records count.
        json_: print what was made as JSON.
    """
    model, options = model or ModelOptions(), options or DataOptions()
    check_writable(out)
    rank, processes = place_among_processes()
    source = options.open(data)
    opened = model.open()
    layers = layers_of(parse_layers(layer), opened.spec.n_layer)
    run = Extraction(opened, source, layers, pool, dtype, options.on_error, batch_size)
    began = time.perf_counter()
    with keeping(folder_of(out)), working("features", "pictures", before="loading the model") as progress:
        made = run.run(out, rank, processes, progress if rank == 0 else None)
    if rank == 0:
        seconds = time.perf_counter() - began
        written = read_features(out)
        record = {"written": str(out), "pictures": len(written.numbers), "made": made, "layers": layers}
        record |= {"width": opened.spec.n_embd, "backend": written.facts["backend"], "seconds": round(seconds, 3)}
        record |= {"pictures_per_s": round(made / seconds, 2), "skipped": written.facts["skipped"]}
        print_record(record, json_)
