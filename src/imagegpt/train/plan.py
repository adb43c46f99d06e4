"""What a training run costs before anything is started: memory, operations, bytes sent, time.

Nothing here needs a GPU, or torch (but for the CPU, whose rate is measured). docs/planning.md says what is counted.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from imagegpt.engine.accelerators import PRECISIONS, Accelerator, accelerator
from imagegpt.engine.cost import Training, block_numbers, training_flops, training_memory
from imagegpt.errors import InputError, check_count
from imagegpt.spec import ModelSpec

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
Strategy = Literal["ddp", "fsdp"]
Optimizer = Literal["adamw", "muon"]

GPU_UTILISATION = 0.40  # an assumption: no GPU has been measured
# Measured (benchmarks/RESULTS.md, forward.py): a step of small on two cores, over the rate of one product.
CPU_UTILISATION = {"fp32": 0.55}
CPU_HALF_UTILISATION = 0.1  # an assumption: on a busy machine steps in bf16 reached 0.03 to 0.07 (docs/planning.md)
GPU_CONTEXT = 1 << 30  # an assumption: CUDA's context and the libraries' work space
GPU_FRAGMENTS = 0.05  # an assumption: the part that torch's allocator can't use
CPU_LIBRARIES = 400 << 20  # measured: Python, torch and transformers before a model is made, and threads' buffers
CPU_FRAGMENTS = 0.13  # measured: what glibc keeps of freed tensors, 9 to 20 %; with checkpointing up to 60 %
DDP_ROOM = 0.9  # part of the memory up to which ddp is chosen by itself: what is planned is not exact
NODE = 8  # GPUs of a node
NETWORK = 50.0  # GB/s per GPU between nodes: 400 Gbit/s, an assumption
# The paper's batch and steps (Chen et al. 2020, section 3.3: 128 and a million; for iGPT-XL 64 and two million).
PAPER_RUNS = {"xl": (64, 2_000_000)}
PAPER_RUN = (128, 1_000_000)


@dataclass(frozen=True)
class Plan:
    """A run's costs.

    Args:
        parameters: of the model.
        ids: of a sequence.
        batch, gpus, gpu, precision, accumulate, checkpointing, ema, optimizer, dropout, steps: as they were given.
        strategy: ddp or fsdp; "none" for one GPU.
        rows: sequences of one forward of one GPU.
        memory: bytes of one GPU at its fullest moment, by part; `training_memory` names the parts, `overhead` is the
            libraries' own and what the allocator can't use.
        memory_total, memory_available: bytes.
        fits: whether the first is at most the second.
        remedy: the first change that makes it fit, as options of the command; "" if it fits, `None` if nothing does.
        flops_per_step, flops: operations of all GPUs; of the whole run.
        peak_flops: operations a second of one GPU.
        utilisation: part of them that is reached.
        bytes_per_step: that one GPU sends.
        link: bytes a second that it can send.
        compute_seconds, communication_seconds: of a step; the larger counts, as one goes on beside the other.
        limited_by: compute or communication.
        seconds_per_step: the larger of the two.
        ids_per_second: of all GPUs.
        hours, gpu_hours: of the run.
        notes: what is assumed, as sentences.
    """

    parameters: int
    ids: int
    batch: int
    gpus: int
    gpu: str
    precision: str
    strategy: str
    accumulate: int
    rows: int
    checkpointing: bool
    ema: bool
    optimizer: str
    dropout: float
    steps: int
    memory: dict[str, int]
    memory_total: int
    memory_available: int
    fits: bool
    remedy: str | None
    flops_per_step: int
    flops: int
    peak_flops: float
    utilisation: float
    bytes_per_step: int
    link: float
    compute_seconds: float
    communication_seconds: float
    limited_by: str
    seconds_per_step: float
    ids_per_second: float
    hours: float
    gpu_hours: float
    notes: list[str] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """All of it as plain values for JSON."""
        return asdict(self)


def paper_run(size: str | None) -> tuple[int, int]:
    """The paper's batch and steps for a named size; those of its smaller models for any other."""
    return PAPER_RUNS.get(size or "", PAPER_RUN)


def plan(
    spec: ModelSpec,
    *,
    batch: int,
    gpus: int = 1,
    gpu: str = "h200",
    precision: Precision = "bf16",
    strategy: Strategy | None = None,
    accumulate: int = 1,
    checkpointing: bool = False,
    ema: bool = False,
    optimizer: Optimizer = "adamw",
    steps: int | None = None,
    dropout: float = 0.0,
    utilisation: float | None = None,
    gpus_per_node: int = NODE,
    network: float = NETWORK,
) -> Plan:
    """Count what a run costs.

    Args:
        spec: the model's numbers.
        batch: sequences of a step, of all GPUs.
        gpus: how many.
        gpu: a name of `imagegpt.engine.accelerators`; "cpu" is this machine, measured.
        precision: of the products; the weights are float32.
        strategy: of several GPUs; default: ddp if it needs at most 90 % of the memory, else fsdp.
        accumulate: forwards of a step.
        checkpointing: compute activations again in the backward pass.
        ema: keep an average of the weights.
        optimizer: adamw or muon.
        steps: of the run; default: the paper's million.
        dropout: of embeddings and sublayers.
        utilisation: part of the peak that is reached; default: 0.4 for GPUs, an assumption.
        gpus_per_node: GPUs that share the fast link.
        network: GB/s that one GPU sends to other nodes.

    Raises:
        InputError: a number that can't be, an unknown GPU, a precision that it lacks, or a batch that does not divide
            among the GPUs; the message says what would do.

    Example:
        >>> from imagegpt.spec import SIZES
        >>> run = plan(SIZES["xl"], batch=64, gpus=64)
        >>> run.strategy, run.rows, run.fits
        ('fsdp', 1, True)
    """
    _check(batch, gpus, accumulate, gpus_per_node, network, utilisation)
    if not 0 <= dropout < 1:
        raise InputError(f"--dropout must be at least 0 and below 1, not {dropout}.")
    _check_choices(precision=(precision, PRECISIONS), optimizer=(optimizer, get_args(Optimizer)))
    _check_choices(strategy=(strategy or "ddp", get_args(Strategy)))
    rows = rows_of(batch, gpus, accumulate)
    device = accelerator(gpu, precision, rows * spec.n_positions, spec.n_embd)
    run = Training(
        rows=rows,
        half=precision in ("bf16", "fp16"),
        checkpointing=checkpointing,
        ranks=gpus,
        strategy=strategy or "ddp",
        accumulate=accumulate,
        ema=ema,
        optimizer=optimizer,
        dropout=dropout,
        cpu=gpu == "cpu",
    )
    if strategy is None and gpus > 1 and not _fits(spec, run, device, DDP_ROOM):
        run = replace(run, strategy="fsdp")
    memory = memory_parts(spec, run)
    total = sum(memory.values())
    fits = total <= device.memory
    steps = PAPER_RUN[1] if steps is None else steps
    check_count("--steps", steps)
    return Plan(
        parameters=spec.num_parameters,
        ids=spec.n_positions,
        batch=batch,
        gpus=gpus,
        gpu=gpu,
        precision=precision,
        strategy=run.strategy if gpus > 1 else "none",
        accumulate=accumulate,
        rows=rows,
        checkpointing=checkpointing,
        ema=ema,
        optimizer=optimizer,
        dropout=dropout,
        steps=steps,
        memory=memory,
        memory_total=total,
        memory_available=device.memory,
        fits=fits,
        remedy="" if fits else _remedy(spec, run, device),
        **_speed(spec, run, device, steps, precision, utilisation, gpus_per_node, network),
    )


def memory_parts(spec: ModelSpec, run: Training) -> dict[str, int]:
    """`training_memory`, and the `overhead` of the libraries and of the allocator."""
    parts = training_memory(spec, run)
    fixed, fragments = (CPU_LIBRARIES, CPU_FRAGMENTS) if run.cpu else (GPU_CONTEXT, GPU_FRAGMENTS)
    return parts | {"overhead": fixed + int(fragments * sum(parts.values()))}


def rows_of(batch: int, gpus: int, accumulate: int) -> int:
    """Sequences of one forward of one GPU.

    Raises:
        InputError: the batch does not divide; the message names the nearest that do.
    """
    parts = gpus * accumulate
    if batch % parts == 0:
        return batch // parts
    below, what = batch // parts * parts, f"{gpus} GPUs" + (f" x {accumulate} forwards" if accumulate > 1 else "")
    if not below:
        raise InputError(
            f"A batch of {batch} is less than {what}: give --batch {parts}, or at most {max(1, batch // accumulate)} "
            "GPUs."
        )
    raise InputError(f"A batch of {batch} can't be divided evenly among {what}: {below} and {below + parts} can.")


def bytes_sent(spec: ModelSpec, run: Training) -> int:
    """Bytes that one GPU sends in a step, as rings do it.

    DDP sums the float32 gradients once a step: 2 (n - 1) / n of their bytes. FSDP2 gathers the blocks for each forward
    and again for each backward pass, in the products' own type, the rest once, and sends each float32 gradient to its
    owner once a step: (n - 1) / n each.
    """
    if run.ranks == 1:
        return 0
    everything, blocks = spec.num_parameters, sum(block_numbers(spec))
    sent = 2 * 4 * everything
    if run.strategy == "fsdp":
        gathered = 4 * (everything - blocks) + 2 * run.number * blocks
        sent = run.accumulate * gathered + 4 * everything
    return sent * (run.ranks - 1) // run.ranks


def _check(
    batch: int, gpus: int, accumulate: int, gpus_per_node: int, network: float, utilisation: float | None
) -> None:
    for name, value in (("batch", batch), ("gpus", gpus), ("accumulate", accumulate), ("gpus-per-node", gpus_per_node)):
        check_count(f"--{name}", value)
    if network <= 0:
        raise InputError(f"--network must be above 0 GB/s, not {network}.")
    if utilisation is not None and not 0 < utilisation <= 1:
        raise InputError(f"--utilisation must be above 0 and at most 1, not {utilisation}.")


def _check_choices(**choices: tuple[str, tuple[str, ...]]) -> None:
    for name, (value, known) in choices.items():
        if value not in known:
            raise InputError(f"--{name} must be one of {', '.join(known)}, not {value!r}.")


def _fits(spec: ModelSpec, run: Training, device: Accelerator, part: float = 1.0) -> bool:
    return sum(memory_parts(spec, run).values()) <= part * device.memory


def _remedy(spec: ModelSpec, run: Training, device: Accelerator) -> str | None:
    """The first change that fits: one of fsdp, checkpointing, accumulation; then those together."""
    divided = [run] if run.ranks == 1 or run.strategy == "fsdp" else [run, replace(run, strategy="fsdp")]
    bases = [*divided, *(replace(base, checkpointing=True) for base in divided if not run.checkpointing)]
    smaller = [
        replace(base, rows=run.rows // parts, accumulate=run.accumulate * parts)
        for base in bases
        for parts in range(2, run.rows + 1)
        if run.rows % parts == 0
    ]
    for changed in [*bases[1:], *smaller]:
        if _fits(spec, changed, device):
            return _options(run, changed)
    return None


def _options(run: Training, changed: Training) -> str:
    told = ["--strategy fsdp"] if changed.strategy != run.strategy else []
    told += ["--checkpointing"] if changed.checkpointing != run.checkpointing else []
    told += [f"--accumulate {changed.accumulate}"] if changed.accumulate != run.accumulate else []
    return " ".join(told)


def _speed(
    spec: ModelSpec,
    run: Training,
    device: Accelerator,
    steps: int,
    precision: str,
    utilisation: float | None,
    gpus_per_node: int,
    network: float,
) -> dict[str, Any]:
    """Operations, bytes sent and times of a plan, and the notes that say what is assumed."""
    sequences = run.rows * run.ranks * run.accumulate
    operations = training_flops(spec, sequences, run.checkpointing)
    usual = CPU_UTILISATION.get(precision, CPU_HALF_UTILISATION) if run.cpu else GPU_UTILISATION
    part = usual if utilisation is None else utilisation
    rate, sent = device.rate(precision), bytes_sent(spec, run)
    across = run.ranks > gpus_per_node
    link = network * 10**9 if across else device.link
    compute, communication = operations / run.ranks / (rate * part), sent / link
    seconds = max(compute, communication)
    return {
        "flops_per_step": operations,
        "flops": operations * steps,
        "peak_flops": rate,
        "utilisation": part,
        "bytes_per_step": sent,
        "link": link,
        "compute_seconds": compute,
        "communication_seconds": communication,
        "limited_by": "communication" if communication > compute else "compute",
        "seconds_per_step": seconds,
        "ids_per_second": sequences * spec.n_positions / seconds,
        "hours": steps * seconds / 3600,
        "gpu_hours": run.ranks * steps * seconds / 3600,
        "notes": _notes(run, device, part, utilisation is None, across, gpus_per_node, network),
    }


def _notes(
    run: Training, device: Accelerator, part: float, usual: bool, across: bool, gpus_per_node: int, network: float
) -> list[str]:
    if not usual:
        speed = f"{part:.0%} of the peak, as given"
    elif run.cpu:
        known = "steps of small reached this part on two cores" if not run.half else "this part is assumed"
        speed = f"{part:.0%} of one product's rate, which was measured here; {known}"
    else:
        speed = f"assumed {part:.0%} of peak; no GPU has been measured"
    notes = [f"speed: {speed}", f"peak: {device.source}"]
    if run.cpu:
        notes.append(
            f"overhead: {CPU_LIBRARIES >> 20} MiB of libraries, and {CPU_FRAGMENTS:.0%} that glibc keeps unless "
            "MALLOC_MMAP_THRESHOLD_=1048576 (docs/planning.md)"
        )
    else:
        notes.append(f"overhead: assumed {GPU_CONTEXT >> 20} MiB and {GPU_FRAGMENTS:.0%}")
    if run.ranks > 1:
        where = (
            f"between nodes of {gpus_per_node}, assumed {network:g} GB/s per GPU"
            if across
            else f"within a node, {device.link / 1e9:g} GB/s in one direction"
        )
        notes.append(f"communication: {where}; assumed to go on beside the computation")
    return notes
