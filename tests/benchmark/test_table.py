"""The page of what was measured."""

from benchmark.table import as_markdown


def test_page_of_a_gpu_has_every_goal():
    """Of made figures, so that what is made of several of them is known."""

    def row(part, seconds, images, precision="bfloat16", mfu=0.5, **others):
        figures = {"part": part, "precision": precision, "seconds": seconds, "images": images, "mfu": mfu}
        figures |= {"flops_per_image": 10**9, "matrix_flops": 10**12, "peak_memory_gb": 17.04, "shares": None}
        return figures | {"images_per_second": images / seconds} | others

    def twice(part, slow, fast, images):
        return [row(part, slow, images, "float32", 0.3), row(part, fast, images, mfu=0.6)]

    step = "training step: reconstruction, quantization"
    rows = {
        "tokenizer": [
            row(step, 1, 128, mfu=0.1),
            row(f"{step}, entropy", 1, 128, mfu=0.51),
            row(f"{step}, entropy, lpips, adversarial", 0.36, 128, mfu=0.42),
            row("training step with all losses, 32 images on the device", 1, 32, mfu=0.39),
            *twice("encode", 2.56, 0.256, 256),
            *twice("decode", 5.12, 0.512, 256),
        ],
        "vqgan": [row("VQGAN: training step with all losses", 1, 128, mfu=0.33)],
        "generator": [
            row("training step", 0.036, 512, mfu=0.49),
            *twice("generation in 8 steps", 2.56, 0.256, 256),
            *twice("generation in 8 steps, guided", 5.12, 0.512, 256),
        ],
        "loading": [
            row("JPEGs, 8 workers: training step", 1, 128, busy=0.97),
            row("JPEGs, 8 workers: alone", 1, 1250),
            *twice("JPEGs, 8 workers: pre-tokenization, once", 100, 50, 4000),
        ],
        "rfid": [
            row("Inception features", 0.256, 256, "float32"),
            row("rFID from start to end, once", 62.0, 1000, "float32"),
        ],
    }
    about = {"device": "a GPU", "cpus": 16, "torch": "2", "repeats": 3}
    page = as_markdown({name: {**about, "rows": each} for name, each in rows.items()}, on_gpu=True)
    goals = [line.strip("| ").split(" | ") for line in page.splitlines()[4:17]]
    assert [goal[1:] for goal in goals] == [
        ["≥ 50 %", "51 %"],
        ["≥ 40 %", "42 %"],
        ["≥ 60 %", "60 %"],
        ["≥ 60 %", "60 %"],
        ["≥ 50 %", "49 %"],
        ["≥ 45 %", "60 %"],
        ["≥ 35 %", "33 %"],
        ["≥ 95 %", "97 %"],
        ["< 24 GB", "17.0 GB"],
        ["< 1.5 h", f"{14_595 * 0.36 / 3600:.2f} h"],
        ["< 1 h", f"{37_243 * 0.009 / 3600:.2f} h"],
        # The others take 20 ms to be encoded twice, or 2 ms, and 0.8 ms to be read.
        ["< 2 min", "66.7 min in float32, 7.3 min in bfloat16"],
        # An rFID's images take 32 ms each, the rest of it 30 s; a generated one 32 or 5 ms.
        ["< 3 min", "21.7 min in float32, 3.8 min in bfloat16"],
    ]
    assert "| encode (bfloat16) | 0.256 | 1,000 |" in page and "## tokenizer, median of 3" in page
