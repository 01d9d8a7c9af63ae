"""What the study's way of loading loses, as numbers and as curves by layer."""

from comparison.recipes import INITS
from comparison.texts import to_csv
from metrics.loading import LoadingLoss
from reporting.drawing import Figure, draw_panels, over_places


def loading_to_csv(losses: list[LoadingLoss]) -> str:
    """A line for each source and layer; the last layer of a source is that of its last norm."""
    lines = [
        (each.init, layer, f"{error:.6g}", f"{cka:.6g}")
        for each in losses
        for layer, (error, cka) in enumerate(zip(each.error, each.cka), start=1)
    ]
    return to_csv(["source", "layer", "relative_error", "cka_debiased"], lines)


def draw_loading(losses: list[LoadingLoss]) -> Figure:
    """Relative error and CKA by layer, a curve for each source."""
    panels = {
        title: [
            over_places(INITS[each.init], look, each.init, getattr(each, field))
            for look, each in enumerate(losses)
        ]
        for title, field in {"relative error": "error", "linear CKA, debiased": "cka"}.items()
    }
    caption = (
        f"Patch features of {losses[0].num_images} validation frames: each source's encoder with its weights "
        "as they are, against the study's plain ViT with what fits of them. Left, the norm of the "
        "difference over that of the exact features; right, how alike they are up to rotation and scale. "
        "The last point of each curve is behind the last norm. Nothing was trained."
    )
    return Figure("loading", "What loading lost", caption, draw_panels(panels, "block", log_x=False))
