"""The table of verbs, and the one place where an error becomes a sentence and an exit code."""

from __future__ import annotations

import sys
import warnings

import cyclopts
from rich.console import Console
from rich.markup import escape

from imagegpt import __version__
from imagegpt.errors import InputError

BAD_INPUT = 2
INTERRUPTED = 130

app = cyclopts.App(
    name="imagegpt",
    help="Complete, sample and inspect pictures with ImageGPT.",
    version=f"imagegpt {__version__}",
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,  # ours says what became of the files
)
# Import paths, not functions: a verb's file is read when the verb is called.
app.command("imagegpt.cli.complete:complete", name="complete", help="Keep the first part of pictures; paint the rest.")
app.command("imagegpt.cli.sample:sample", name="sample", help="Paint pictures from nothing.")
app.command("imagegpt.cli.features:features", name="features", help="Write what the network's layers say of pictures.")
app.command("imagegpt.cli.probe:probe", name="probe", help="Find out which layer knows the classes of pictures best.")
app.command("imagegpt.cli.classify:classify", name="classify", help="Tell what pictures show.")
app.command("imagegpt.cli.evaluate:evaluate", name="evaluate", help="Find out how good a classifier is.")
app.command("imagegpt.cli.score:score", name="score", help="Tell how likely pictures are, and which pixels are not.")
app.command("imagegpt.cli.anomaly:anomaly", name="anomaly", help="Find pictures that are unlike normal ones.")
app.command("imagegpt.cli.compress:compress", name="compress", help="Put pictures into one small file.")
app.command("imagegpt.cli.compress:decompress", name="decompress", help="Take pictures out of a compressed file.")
app.command("imagegpt.cli.tokenize:tokenize", name="tokenize", help="Turn pictures into the ids of a codec, once.")
app.command("imagegpt.cli.train:trainer", name="train", help="Train a network on pictures, from their pixels alone.")
app.command("imagegpt.cli.finetune:finetuner", name="finetune", help="Make a classifier of a model and labels.")
app.command("imagegpt.cli.convert:convert", name="convert", help="Read OpenAI's TensorFlow checkpoints, and back.")
app.command("imagegpt.cli.download:download", name="download", help="Fetch OpenAI's TensorFlow checkpoints.")
app.command("imagegpt.cli.export:export", name="export", help="Write a model in a form that others run: ONNX, torch.")
app.command("imagegpt.cli.push:push", name="push", help="Put a model on the Hugging Face Hub.")
app.command("imagegpt.cli.pull:pull", name="pull", help="Fetch a model from the Hugging Face Hub into a folder.")
app.command("imagegpt.cli.studio:studio", name="studio", help="See and steer a model in a browser.")
app.command("imagegpt.cli.vqvae:vqvae", name="vqvae", help="Learn codes for blocks of pixels, in a palette's place.")
app.command("imagegpt.cli.palette:palette", name="palette", help="Fit a palette to your pictures, or look at one.")
app.command("imagegpt.cli.bench:bench", name="bench", help="Measure how fast this machine is.")
app.command("imagegpt.cli.plan:plan", name="plan", help="Say what a training run will cost.")
app.command("imagegpt.cli.info:info", name="info", help="Show what a model is: shape, files, codec.")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit code: 0, 2 for input that can't be used, 130 when interrupted."""
    errors = Console(emoji=False, stderr=True, soft_wrap=True)
    _quiet_libraries(errors)
    try:
        app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except InputError as error:
        errors.print(f"[red]error:[/] {escape(str(error))}", highlight=False)
        return BAD_INPUT
    except cyclopts.CycloptsError as error:
        errors.print(f"[red]error:[/] {escape(str(error))}", highlight=False)
        errors.print("See: imagegpt --help", highlight=False)
        return BAD_INPUT
    except MemoryError:
        errors.print("[red]error:[/] There is not enough memory for this: ask for fewer pictures at once.")
        return BAD_INPUT
    except KeyboardInterrupt as interruption:
        errors.print(escape(str(interruption)) or "Interrupted; nothing was written.", highlight=False)
        return INTERRUPTED
    except BrokenPipeError:
        return 0
    return 0


def _quiet_libraries(console: Console) -> None:
    """Let our own warnings through as one line each; nobody else's."""
    warnings.simplefilter("ignore")
    warnings.filterwarnings("default", module="imagegpt")
    warnings.showwarning = lambda message, *_, **__: console.print(
        f"[yellow]warning:[/] {escape(str(message))}", highlight=False
    )


def entry() -> None:
    """The console script."""
    sys.exit(main())
