"""Mutated picture files through the processor: each is a picture or one clear sentence, in 5 s and 1 GiB.

The files are read in processes of their own, so that a crash, a hang or a flood of memory is seen and has a number:
`python tests/codec/test_fuzz.py 4711` reads file 4711 again, here and now.
"""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SECONDS, MEMORY = 5, 1 << 30  # of the processor, and bytes
FAST, FULL, WORKER = 600, 10_000, 2_500  # files in the fast part, in all, and per process
# Numbers that headers hold where something is wrong.
ABSURD = [0, 1, 0x7F, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 8_000, 30_000, 60_000, 100_000]


def noise(height: int, width: int, channels: int) -> np.ndarray:
    """Half noise, half a ramp: compressors take different paths through the two."""
    pixels = np.random.default_rng(channels).integers(0, 256, (height, width, channels), dtype=np.uint8)
    pixels[height // 2 :] = np.arange(width, dtype=np.uint8)[:, None] * 4
    return pixels


def seed_files() -> dict[str, bytes]:
    """Small whole files of every format that PIL writes and reads, in many of their variants."""
    rgb, rgba = (Image.fromarray(noise(24, 20, channels)) for channels in (3, 4))
    grey, bits, indexed = rgb.convert("L"), rgb.convert("1"), rgb.convert("P")
    deep = Image.fromarray(noise(24, 20, 1)[..., 0].astype(np.uint16) * 257)
    floats = Image.fromarray(noise(24, 20, 1)[..., 0].astype(np.float32) / 255)
    large = rgb.resize((128, 128))
    exif = Image.Exif()
    exif[0x112] = 6
    wanted = {
        "PNG": [
            *[(image, {}) for image in (rgb, rgba, grey, bits, deep, rgba.convert("LA"))],
            (indexed, {"transparency": 3}),
            (rgb, {"exif": exif, "dpi": (72, 72), "icc_profile": bytes(200)}),
            (rgb, {"save_all": True, "append_images": [rgb.rotate(90)]}),
        ],
        "JPEG": [
            *[(image, {}) for image in (rgb, grey, rgb.convert("CMYK"))],
            *[(rgb, {"progressive": True}), (rgb, {"exif": exif}), (rgb, {"subsampling": 0, "restart_marker_rows": 1})],
        ],
        "GIF": [(indexed, {}), (rgb, {"save_all": True, "append_images": [rgb.rotate(90)]}), (rgba, {})],
        "BMP": [(image, {}) for image in (rgb, rgba, grey, bits, indexed)],
        "DIB": [(rgb, {})],
        "TIFF": [
            *[(image, {}) for image in (rgb, rgba, grey, bits, indexed, deep, floats, rgb.convert("CMYK"))],
            *[(rgb, {"compression": name}) for name in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "lzma")],
            *[(bits, {"compression": name}) for name in ("group3", "group4", "tiff_ccitt")],
            *[(deep, {"compression": "tiff_lzw"}), (rgb, {"big_tiff": True, "exif": exif})],
            (rgb, {"save_all": True, "append_images": [grey]}),
        ],
        "WEBP": [
            *[(rgb, {}), (rgba, {"lossless": True}), (rgba, {"exif": exif})],
            (rgb, {"save_all": True, "append_images": [rgb.rotate(90)]}),
        ],
        "AVIF": [(rgb, {"quality": 60}), (rgba, {"exif": exif})],
        "JPEG2000": [(rgb, {}), (rgba, {"irreversible": True}), (deep, {}), (rgb, {"no_jp2": True})],
        "PPM": [(image, {}) for image in (rgb, grey, bits, deep, floats)],
        "ICO": [(rgba, {"sizes": [(16, 16), (24, 20)]}), (rgba, {"sizes": [(16, 16)], "bitmap_format": "bmp"})],
        "ICNS": [(large.convert("RGBA"), {})],
        "TGA": [(rgb, {}), (rgba, {"compression": "tga_rle"}), (indexed, {}), (grey, {})],
        "PCX": [(rgb, {}), (grey, {}), (bits, {}), (indexed, {})],
        "SGI": [(rgb, {}), (rgba, {}), (grey, {"bpc": 2})],
        "DDS": [(rgb, {}), (rgba, {"pixel_format": "DXT5"}), (rgb, {"pixel_format": "DXT1"})],
        "QOI": [(rgb, {}), (rgba, {})],
        "IM": [(rgb, {}), (indexed, {}), (floats, {})],
        "MPO": [(rgb, {"save_all": True, "append_images": [rgb.rotate(90)]})],
        "MSP": [(bits, {})],
        "XBM": [(bits, {})],
        "BLP": [(indexed, {"blp_version": "BLP1"}), (indexed, {"blp_version": "BLP2"})],
        "SPIDER": [(floats, {})],
        "EPS": [(rgb, {})],
    }
    Image.init()
    files = {}
    for form in wanted.keys() & Image.SAVE.keys():
        for number, (image, options) in enumerate(wanted[form]):
            file = io.BytesIO()
            image.save(file, form, **options)
            files[f"{form} {number}"] = file.getvalue()
    files["PNG interlaced"] = interlaced_png()
    files["PPM plain"] = b"P3 4 3 255 " + b" ".join(b"%d" % value for value in range(36))
    files["BMP RLE"] = rle_bmp()
    files["XPM"] = b'/* XPM */\nstatic char *a[] = {\n"3 2 2 1",\n"a c #ff0000",\n"b c #00ff00",\n"aba",\n"bab"};\n'
    files["FITS"] = b"".join(
        card.ljust(80).encode()
        for card in [
            *("SIMPLE  =                    T", "BITPIX  =                    8", "NAXIS   =                    2"),
            *("NAXIS1  =                    4", "NAXIS2  =                    3", "END"),
        ]
    ).ljust(2880) + bytes(2880)
    return dict(sorted(files.items()))


def interlaced_png() -> bytes:
    """Adam7 of 8 x 8 grey pixels; PIL reads it, but does not write it."""
    from zlib import compress, crc32

    passes = [(1, 1), (1, 1), (2, 1), (2, 2), (4, 2), (4, 4), (8, 4)]
    rows = b"".join((b"\0" + bytes(range(width))) * height for width, height in passes)
    parts = [(b"IHDR", b"\0\0\0\x08\0\0\0\x08\x08\0\0\0\1"), (b"IDAT", compress(rows)), (b"IEND", b"")]
    chunks = [len(d).to_bytes(4, "big") + kind + d + crc32(kind + d).to_bytes(4, "big") for kind, d in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def rle_bmp() -> bytes:
    rows = b"".join(bytes([4, y, 0, 4, 1, 2, 3, 4, 0, 0]) for y in range(8)) + b"\0\1"
    head = b"".join(n.to_bytes(4, "little") for n in (40, 8, 8, 1 | 8 << 16, 1, len(rows), 0, 0, 256, 0))
    return b"BM" + b"".join(n.to_bytes(4, "little") for n in (1078 + len(rows), 0, 1078)) + head + bytes(1024) + rows


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """One to four changes; half of them lie in the first 128 bytes, where headers are."""
    content = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        if not content:
            break
        end = min(128, len(content)) if rng.random() < 0.5 else len(content)
        at, length = int(rng.integers(end)), int(2 ** (8 * rng.random()))
        match rng.integers(8):
            case 0:
                content[at] ^= 1 << int(rng.integers(8))
            case 1:
                content[at] = int(rng.integers(256))
            case 2:
                del content[at:]
            case 3:
                content[at : at + length] = bytes(min(length, len(content) - at))
            case 4:
                content[at:at] = content[at : at + length] * int(rng.integers(1, 9))
            case 5:
                content[at:at] = rng.bytes(length)
            case 6:
                del content[at : at + length]
            case 7:
                width = int(rng.choice([1, 2, 4, 8]))
                number = ABSURD[rng.integers(len(ABSURD))] % (1 << (8 * width))
                content[at : at + width] = number.to_bytes(width, "big" if rng.random() < 0.5 else "little")
    return mended(bytes(content)) if rng.random() < 0.5 else bytes(content)


def mended(data: bytes) -> bytes:
    """A PNG's checksums made right again, so that what was changed is read at all."""
    from zlib import crc32

    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    content, at = bytearray(data), 8
    while at + 12 <= len(content):
        end = at + 8 + int.from_bytes(content[at : at + 4], "big")
        if end + 4 > len(content):
            break
        content[end : end + 4] = crc32(content[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(content)


def fuzzed(number: int, files: dict[str, bytes]) -> tuple[str, bytes]:
    rng = np.random.default_rng(number)
    name = list(files)[number % len(files)]
    return name, mutate(files[name], rng)


# --- one process


def verdict(processor, data: bytes) -> str:
    """ "ids", "refused", or what is wrong."""
    from imagegpt.errors import InputError

    try:
        ids = processor(data, return_tensors="np")["input_ids"]
    except InputError as error:
        told = str(error)
        one_sentence = told.startswith("The bytes given") and told.endswith(".") and "\n" not in told
        if not one_sentence or len(told) > 300 or "memory" in told:
            return f"an unclear message: {told!r}"
        return "refused"
    except BaseException as error:
        return f"raised {type(error).__name__}: {error}"
    return "ids" if ids.shape == (1, 1024) and ids.min() >= 0 and ids.max() < 8 else f"ids {ids.shape}"


def work(numbers: range) -> None:
    """Read files and print a line before and after each; a file that hangs ends the process by SIGPROF."""
    from imagegpt.codec.processor import ImageGPTImageProcessor

    processor = ImageGPTImageProcessor(np.random.default_rng(0).uniform(-1, 1, (8, 3)), size=32)
    files = seed_files()
    warnings.simplefilter("always")
    warnings.filterwarnings("ignore", "Floats")  # meant to be seen: what white is in a file of floats is a guess
    kept = tempfile.TemporaryFile()  # noqa: SIM115
    os.dup2(kept.fileno(), 2)  # what libraries in C print there is seen too
    processor(files["PNG 0"])
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 3 * MEMORY // 2, -1))
    before = peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in numbers:
        name, data = fuzzed(number, files)
        print(json.dumps([number, name]), flush=True)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        result = verdict(processor, data)
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stderr.flush()
        printed = os.pread(kept.fileno(), 4096, 0).decode(errors="replace")
        if printed:
            # libtiff prints by itself, in C, and Pillow gives no way to stop it.
            by_libtiff = name.startswith("TIFF") and ".py" not in printed and "More samples" not in printed
            result = result if by_libtiff else f"printed {printed!r}"
            os.ftruncate(kept.fileno(), 0)
            os.lseek(kept.fileno(), 0, os.SEEK_SET)
        peak = max(peak, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        if (peak - before) << 10 > MEMORY:
            result = f"took {(peak - before) >> 10} MiB"
            before = peak
        print(json.dumps([number, name, result, printed]), flush=True)
    print(json.dumps({"mib": (peak - before) >> 10}), flush=True)


# --- many processes, one after another


def results(count: int) -> dict[int, tuple[str, str]]:
    """The seed file's name and the verdict, for files 0..count-1; a process that dies is followed by another."""
    found, start = {}, 0
    while start < count:
        stop = min(start + WORKER, count)
        command = [sys.executable, __file__, str(start), str(stop)]
        process = subprocess.run(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        lines = [json.loads(line) for line in process.stdout.splitlines()]
        found |= {line[0]: (line[1], line[2]) for line in lines if len(line) == 4}
        if process.returncode == 0:
            start = stop
            continue
        begun = [line for line in lines if isinstance(line, list)]
        assert begun, f"the process for files {start} to {stop} died before the first: {process.returncode}"
        found[begun[-1][0]] = (begun[-1][1], f"ended the process: {process.returncode}")
        start = begun[-1][0] + 1
    return found


def check(count: int) -> None:
    found = results(count)
    assert sorted(found) == list(range(count))
    bad = {number: result for number, result in found.items() if result[1] not in ("ids", "refused")}
    assert not bad, f"{len(bad)} of {count}: {dict(list(bad.items())[:20])}"
    # Mutations that PIL never notices, or that it never lets past the header, would test nothing.
    counts = Counter(result for _, result in found.values())
    assert min(counts["ids"], counts["refused"]) > count / 6, counts


def test_whole_files_of_every_format_are_read():
    from imagegpt.codec.pictures import NOT_READ, read_picture

    files = seed_files()
    assert len(files) > 60
    for name, data in files.items():
        if name.split()[0] not in NOT_READ:
            assert min(read_picture(data).size) >= 2, name


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of memory and time by Linux")
def test_600_mutated_files_are_read_or_refused():
    check(FAST)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of memory and time by Linux")
def test_10_000_mutated_files_are_read_or_refused():
    check(FULL)


if __name__ == "__main__":
    first = int(sys.argv[1])
    work(range(first, int(sys.argv[2]) if len(sys.argv) > 2 else first + 1))
