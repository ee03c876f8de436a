"""Speed of the input pipeline: images per second and core of decoding, canvases and whole batches.

The baseline is what a host would do without augmentation on the accelerator: decode, then make
eight views of 224 px with Pillow by the recipe of design section 3.
"""

import io
import time
from collections.abc import Callable

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from mcl_jax.data.decode import decode_to_canvas
from mcl_jax.data.loader_settings import LoaderSettings
from mcl_jax.data.pipeline import batches
from mcl_jax.data.record import Record, Source

# Stages whose CPU times `ratio` compares.
EIGHT_VIEWS = "decode + eight 224 px views, Pillow"
TO_CANVAS = "decode to {} px canvas"


class SyntheticPhotos:
    """JPEGs of 500x375 px at quality 90, about 55 KB each as photographs are; picklable."""

    class_names = None
    # Distinct images; further indices repeat them, which no stage can profit from.
    _DISTINCT = 32

    def __init__(self, count: int):
        """count: length of the source in images."""
        self._count = count
        self._encoded = [_photo(np.random.default_rng(i)) for i in range(self._DISTINCT)]

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Record:
        return Record(self._encoded[index % self._DISTINCT], -1, f"synthetic{index}")


def _photo(rng: np.random.Generator) -> bytes:
    """Encoded noise of all scales, fine ones weaker."""
    image = np.zeros((375, 500, 3), np.float32)
    for cells in (2, 4, 8, 16, 32, 64, 128, 256, 500):
        noise = rng.standard_normal((cells, cells, 3), np.float32)
        image += cv2.resize(noise, (500, 375), interpolation=cv2.INTER_CUBIC) / cells**0.25
    image = 128 + 120 * image / np.abs(image).max()
    quality = [cv2.IMWRITE_JPEG_QUALITY, 90]
    return cv2.imencode(".jpg", image.clip(0, 255).astype(np.uint8), quality)[1].tobytes()


def benchmark(
    source: Source,
    *,
    canvas_size: int,
    batch_size: int,
    seconds: float,
    pipelines: list[tuple[int, int]],
) -> list[dict]:
    """Measure every stage for about `seconds` each.

    Args:
      source: encoded images; damaged ones must be few.
      canvas_size: C in px.
      batch_size: images per batch of the whole pipeline.
      seconds: wall-clock time per stage.
      pipelines: (workers, threads) settings of the whole pipeline to try.

    Returns:
      Rows {stage, images_per_s (wall clock), ms_per_image (wall clock), cpu_ms_per_image (this
      process, None with workers, whose time is theirs)}. The single-image stages run on one core.
    """
    data = [source[i].data for i in range(min(len(source), 64))]
    rng = np.random.default_rng(0)
    stages: dict[str, Callable[[bytes], object]] = {
        "decode, OpenCV": _decode_opencv,
        "decode, Pillow": _decode_pillow,
        TO_CANVAS.format(canvas_size): lambda d: decode_to_canvas(d, canvas_size),
        EIGHT_VIEWS: lambda d: eight_views(d, rng),
    }
    if all(d.startswith(b"\xff\xd8") for d in data):
        stages = {"decode, simplejpeg": simplejpeg.decode_jpeg} | stages
    rows = [_time_images(name, stage, data=data, seconds=seconds) for name, stage in stages.items()]
    for workers, threads in pipelines:
        settings = _settings(canvas_size, batch_size, workers=workers, threads=threads)
        rows.append(_time_pipeline(source, settings, seconds))
    return rows


def ratio(rows: list[dict], canvas_size: int) -> float:
    """How many images become canvases in the CPU time of one image's eight Pillow views."""
    cost = {row["stage"]: row["cpu_ms_per_image"] for row in rows}
    return cost[EIGHT_VIEWS] / cost[TO_CANVAS.format(canvas_size)]


def pipeline_rate(canvas_size: int, seconds: float = 1.0) -> float:
    """Images per second that one core of this machine turns into canvases, whole pipeline."""
    settings = _settings(canvas_size, batch_size=32, workers=0, threads=1)
    row = _time_pipeline(SyntheticPhotos(100_000), settings, seconds)
    return 1e3 / row["cpu_ms_per_image"]


def _time_images(
    name: str, stage: Callable[[bytes], object], data: list[bytes], seconds: float
) -> dict:
    stage(data[0])
    count, start, cpu = 0, time.perf_counter(), time.process_time()
    while not count or time.perf_counter() - start < seconds:
        stage(data[count % len(data)])
        count += 1
    return _row(name, count, wall=time.perf_counter() - start, cpu=time.process_time() - cpu)


def _settings(canvas_size: int, batch_size: int, workers: int, threads: int) -> LoaderSettings:
    """Of a loader whose images are all readable, in one process."""
    return LoaderSettings(
        canvas_size=canvas_size,
        batch_size=batch_size,
        process_index=0,
        process_count=1,
        workers=workers,
        threads=threads,
        max_unreadable_share=1.0,
        unreadable_grace=0,
    )


def _time_pipeline(source: Source, settings: LoaderSettings, seconds: float) -> dict:
    workers, threads = settings.workers, settings.threads
    with batches(source, settings, seed=0, start_step=0, shuffle=True) as iterator:
        # What was made ahead while the workers started must not count.
        for _ in range(2 * max(workers, 1) + 2 * threads):
            next(iterator)
        count, start, cpu = 0, time.perf_counter(), time.process_time()
        while not count or time.perf_counter() - start < seconds:
            next(iterator)
            count += settings.batch_size
        wall, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    name = f"whole pipeline, {workers} workers, {threads} threads"
    return _row(name, count, wall=wall, cpu=None if workers else cpu_seconds)


def _row(stage: str, count: int, wall: float, cpu: float | None) -> dict:
    return {
        "stage": stage,
        "images_per_s": count / wall,
        "ms_per_image": 1e3 * wall / count,
        "cpu_ms_per_image": None if cpu is None else 1e3 * cpu / count,
    }


def as_text(rows: list[dict]) -> str:
    """The rows as text, one line each."""
    lines = [f"{'stage':<42}{'images/s':>10}{'ms/image':>10}{'CPU ms/image':>14}"]
    for row in rows:
        cpu = row["cpu_ms_per_image"]
        cpu = "in workers" if cpu is None else f"{cpu:.2f}"
        lines.append(
            f"{row['stage']:<42}{row['images_per_s']:>10.0f}{row['ms_per_image']:>10.2f}{cpu:>14}"
        )
    return "\n".join(lines)


def _decode_opencv(data: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


def _decode_pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def eight_views(data: bytes, rng: np.random.Generator) -> list[np.ndarray]:
    """Four views of side q, four of side k (design section 3), each uint8 [224, 224, 3]."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    sides = [(1.0, 0.0), (0.1, 0.2)]
    return [
        _view(image, rng, blur=blur, solarize=solarize)
        for blur, solarize in sides
        for _ in range(4)
    ]


def _view(image: Image.Image, rng: np.random.Generator, blur: float, solarize: float) -> np.ndarray:
    width, height = image.size
    area, aspect = (
        rng.uniform(0.2, 1) * width * height,
        np.exp(rng.uniform(*np.log([3 / 4, 4 / 3]))),
    )
    w, h = min(np.sqrt(area * aspect), width), min(np.sqrt(area / aspect), height)
    x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
    view = image.resize((224, 224), Image.Resampling.BICUBIC, box=(x, y, x + w, y + h))
    if rng.random() < 0.5:
        view = ImageOps.mirror(view)
    if rng.random() < 0.8:
        view = ImageEnhance.Brightness(view).enhance(rng.uniform(0.6, 1.4))
        view = ImageEnhance.Contrast(view).enhance(rng.uniform(0.6, 1.4))
        view = ImageEnhance.Color(view).enhance(rng.uniform(0.8, 1.2))
        hue, saturation, value = view.convert("HSV").split()
        shift = int(rng.uniform(-0.1, 0.1) * 255)
        hue = hue.point([(level + shift) % 256 for level in range(256)])
        view = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    if rng.random() < 0.2:
        view = view.convert("L").convert("RGB")
    if rng.random() < blur:
        view = view.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0)))
    if rng.random() < solarize:
        view = ImageOps.solarize(view, 128)
    return np.asarray(view)
