"""Measure the cost of encoding an image: CPU, bytes, and the delay of other threads.

    PYTHONPATH=worker python -m tests.bench.bench_images            # print the table
    PYTHONPATH=worker python -m tests.bench.bench_images --write    # also write it into docs/explanation/benchmarks.md

The images are 512 x 512 with the spectrum of photographs, and images of the bundled model. Encoders take turns, so
that other load affects all of them alike.
"""

from __future__ import annotations

import io
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from threading import Event, Thread

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tests.bench.table import Conditions, Line, parse_arguments, report

from latentfarm.image_formats import IMAGE_FORMATS
from latentfarm_worker.images.encode import encode_image
from mini_training import measure

Pixels = NDArray[np.uint8]
Encoder = Callable[[Pixels], bytes]

_SIDE = 512
#: slope of a photograph's amplitude over spatial frequency; about 1 in D. J. Field, J. Opt. Soc. Am. A 4 (1987), 2379
_SLOPE = 1.2
_CPU_BAR, _BYTES_BAR, _WAIT_BAR = 0.2, 1.06, 0.5
_DEFAULT = "Pillow's PNG"


def natural_image(side: int, seed: int) -> Pixels:
    """Return noise with a photograph's spectrum, (side, side, 3), with plain and translucent shapes on it.

    Channels correlate as in photographs. Odd seeds add sensor noise of one level.
    """
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None, :])
    amplitude = 1 / np.maximum(frequency, 1 / side) ** _SLOPE

    def field() -> NDArray[np.float64]:
        spectrum = np.fft.fft2(rng.standard_normal((side, side))) * amplitude
        values: NDArray[np.float64] = np.fft.ifft2(spectrum).real
        return values

    common = field()
    channels = [common + 0.3 * field() for _ in range(3)]
    image: NDArray[np.float64] = np.stack([128 + 45 * (each - each.mean()) / each.std() for each in channels], axis=-1)
    y, x = np.mgrid[:side, :side]
    for number in range(6):
        (left, top), radius = rng.integers(0, side, 2), rng.integers(side // 16, side // 5)
        disc = (x - left) ** 2 + (y - top) ** 2 < radius**2
        box = (abs(x - left) < radius) & (abs(y - top) < radius // 2)
        shape, colour = disc if number % 2 else box, rng.integers(0, 256, 3)
        image[shape] = colour if number % 3 == 0 else (image[shape] + colour) / 2
    image += rng.standard_normal(image.shape) * (seed % 2)
    return np.asarray(np.clip(image, 0, 255), np.uint8)


def mini_images(count: int) -> list[Pixels]:
    """Render images with the bundled model, in its native size."""
    pipe = measure.load_pipeline()
    prompts = measure.full_captions(measure.held_out_combinations(count))
    return [np.asarray(each) for each in measure.draw_prompts(pipe, prompts, guidance=measure.GUIDANCE).images]


def pillow(image_format: str = "PNG", **options: int) -> Encoder:
    """Return an encoder of Pillow's."""

    def encode(pixels: Pixels) -> bytes:
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, format=image_format, **options)
        return out.getvalue()

    return encode


def worker_encoder(image_format: str) -> Encoder:
    """Return the worker's encoder of a format."""
    return lambda pixels: encode_image(torch.from_numpy(pixels), image_format, metadata={})


ENCODERS = {
    _DEFAULT: pillow(),
    "Pillow's PNG at level 1": pillow(compress_level=1),
    **{each: worker_encoder(each) for each in IMAGE_FORMATS},
}


def checked_bytes(images: Sequence[Pixels]) -> dict[str, float]:
    """Return each encoder's mean bytes an image.

    Raises:
        RuntimeError: A lossless encoder changed pixels.
    """
    sizes = {}
    for name, encode in ENCODERS.items():
        bodies = [encode(each) for each in images]
        for body, pixels in zip(bodies, images, strict=True):
            with Image.open(io.BytesIO(body)) as image:
                if name != "jpeg" and not np.array_equal(np.asarray(image.convert("RGB")), pixels):
                    raise RuntimeError(f"{name} changes pixels")
        sizes[name] = statistics.fmean(map(len, bodies))
    return sizes


def cpu_ms(images: Sequence[Pixels], rounds: int) -> dict[str, float]:
    """Return each encoder's CPU milliseconds an image, the median of alternating rounds."""
    taken: dict[str, list[float]] = {name: [] for name in ENCODERS}
    for _ in range(rounds):
        for name, encode in ENCODERS.items():
            began = time.thread_time()
            for each in images:
                encode(each)
            taken[name].append((time.thread_time() - began) / len(images) * 1000)
    return {name: statistics.median(each) for name, each in taken.items()}


def lines_of(kind: str, images: Sequence[Pixels], rounds: int) -> list[Line]:
    """Return the table's lines for one kind of images."""
    sizes, taken = checked_bytes(images), cpu_ms(images, rounds)
    lines = []
    for name in ENCODERS:
        has_bar = name == "png"
        lines += [
            Line(f"{kind}, {name}: CPU", taken[name], "ms"),
            Line(f"{kind}, {name}: size", sizes[name] / 1000, "kB"),
        ]
        if name == _DEFAULT:
            continue
        cpu, size = taken[name] / taken[_DEFAULT], sizes[name] / sizes[_DEFAULT]
        lines += [
            Line(f"{kind}, {name}: CPU, share of Pillow's default", cpu, "", _CPU_BAR if has_bar else None),
            Line(f"{kind}, {name}: bytes, share of Pillow's default", size, "", _BYTES_BAR if has_bar else None),
        ]
    return lines


def wall_s(encode: Encoder, pixels: Pixels, count: int, threads: int) -> float:
    """Return the wall seconds in which ``threads`` threads encode ``count`` images each."""

    def work() -> None:
        for _ in range(count):
            encode(pixels)

    running = [Thread(target=work) for _ in range(threads)]
    began = time.perf_counter()
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return time.perf_counter() - began


def longest_wait(encode: Encoder, pixels: Pixels) -> float:
    """Return the longest wait of another thread for the GIL, as a share of the encoding time: 1 if the GIL is held.

    The switch interval is raised meanwhile, so that no thread is forced to release the GIL.
    """
    ready, done, turns = Event(), Event(), list[float]()

    def take_turns() -> None:
        ready.set()
        while not done.is_set():
            turns.append(time.perf_counter())
            time.sleep(0)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1_000)
    try:
        thread = Thread(target=take_turns)
        thread.start()
        ready.wait()
        began = time.perf_counter()
        encode(pixels)
        ended = time.perf_counter()
        done.set()
        thread.join()
    finally:
        sys.setswitchinterval(interval)
    within = [began, *(turn for turn in turns if began < turn < ended), ended]
    return max(after - before for before, after in pairwise(within)) / (ended - began)


def thread_lines(pixels: Pixels, count: int, rounds: int) -> list[Line]:
    """Return the table's lines about the GIL: the longest waits, and the gain of a second thread."""
    # large enough that encoding takes longer than a busy machine's scheduling delays
    large = np.tile(pixels, (4, 4, 1))
    lines = []
    for name, encode in {
        **{each: worker_encoder(each) for each in IMAGE_FORMATS},
        "Pillow's JPEG": pillow("JPEG", quality=95),
    }.items():
        waits = [longest_wait(encode, large) for _ in range(rounds)]
        label = f"{name}: longest wait of another thread, share of the time"
        has_bar = name in IMAGE_FORMATS
        lines.append(Line(label, statistics.median(waits), "", _WAIT_BAR if has_bar else None))
    for name in IMAGE_FORMATS:
        encode = worker_encoder(name)
        gains = [2 * wall_s(encode, pixels, count, 1) / wall_s(encode, pixels, count, 2) for _ in range(rounds)]
        lines.append(Line(f"{name}: two threads against one, median of {rounds}", statistics.median(gains), "times"))
    return lines


def main() -> int:
    """Return 1 if a bar is missed."""
    arguments = parse_arguments(__doc__)
    conditions = Conditions()
    images, rounds = (2, 2) if arguments.quick else (6, 9)
    natural = [natural_image(_SIDE, seed) for seed in range(images)]
    lines = lines_of("512 x 512", natural, rounds)
    lines += lines_of("mini", mini_images(images), rounds)
    lines += thread_lines(natural[0], 4 if arguments.quick else 30, rounds)
    return report("images", lines, conditions, write=arguments.write)


if __name__ == "__main__":
    raise SystemExit(main())
