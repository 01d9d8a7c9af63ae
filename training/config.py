"""Experiment configs: YAML files on a common base, checked against the sections' keys."""

import argparse
import difflib
from pathlib import Path
from typing import Annotated, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

from errors import UserError
from sizes import as_written, height_and_width
from training.model_sections import AlignmentSection, MaskGITSection, TiTokSection, VQGANSection, with_kind
from training.sections import (
    CorruptionSection,
    DataSection,
    DiscriminatorSection,
    GeneratorData,
    GeneratorTraining,
    LossSection,
    PathText,
    RunSection,
    SamplingSection,
    Section,
    TokenizerTraining,
)


class TokenizerConfig(Section):
    """What train_tokenizer.py is told."""

    run: RunSection = RunSection()
    data: DataSection = DataSection()
    model: Annotated[
        TiTokSection | VQGANSection, Field(discriminator="kind"), BeforeValidator(with_kind("titok"))
    ] = TiTokSection()
    discriminator: DiscriminatorSection = DiscriminatorSection()
    losses: LossSection = LossSection()
    corruption: CorruptionSection = CorruptionSection()
    alignment: AlignmentSection = AlignmentSection()
    training: TokenizerTraining

    @model_validator(mode="after")
    def _discriminator_has_pixels(self):
        # what its halvings leave, and its last two convolutions take a pixel of each
        least = 3 * 2**self.discriminator.layers
        size = self.model.image_size
        if self.losses.adversarial and min(height_and_width(size)) < least:
            raise ValueError(f"model.image_size {as_written(size)}: the discriminator needs {least}")
        return self

    @model_validator(mode="after")
    def _has_blocks_for_muon(self):
        if self.training.optimizer == "muon" and not isinstance(self.model, TiTokSection):
            raise ValueError(
                "training.optimizer muon: it is for transformer blocks, which a VQGAN has none of"
            )
        return self

    @model_validator(mode="after")
    def _has_what_to_freeze(self):
        if self.training.freeze_encoder_steps and not self.model.has_pretrained_encoder:
            raise ValueError("training.freeze_encoder_steps: the encoder starts from random weights")
        if self.training.freeze_projection and not isinstance(self.model, TiTokSection):
            raise ValueError("training.freeze_projection: it is of a TiTok")
        return self

    @model_validator(mode="after")
    def _has_patches_and_blocks(self):
        if self.corruption.patches and not isinstance(self.model, TiTokSection):
            raise ValueError("corruption.patches: it is of a TiTok")
        depth = getattr(getattr(self.model, "decoder", None), "depth", 0)
        if self.alignment.weight and self.alignment.block > depth:
            raise ValueError(
                f"alignment.block {self.alignment.block}: the decoder has {depth} transformer blocks"
            )
        return self


class GeneratorConfig(Section):
    """What train_maskgit.py is told."""

    run: RunSection = RunSection()
    tokenizer: PathText  # a run, a model folder or a Hub id
    data: GeneratorData = GeneratorData()
    model: MaskGITSection = MaskGITSection()
    training: GeneratorTraining
    sampling: SamplingSection = SamplingSection()
    # A weaker generator of the same tokens, from whose logits sampling.guidance leads away; like `tokenizer`
    guide: PathText | None = None

    @model_validator(mode="after")
    def _has_what_to_guide_by(self):
        if self.sampling.guidance != 1 and not self.model.conditions and self.guide is None:
            raise ValueError(
                f"sampling.guidance {self.sampling.guidance:g}: the generator has no model.conditions, and "
                "there is no guide"
            )
        return self


def parse_arguments(config_class: type[Section], description: str) -> tuple[Section, argparse.Namespace]:
    """Read the command line of a training script: `--config`, `--set section.key=value`, `--restart`.

    Returns the checked config, with `run.name` filled in, and the arguments.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", required=True, type=Path, help="YAML file under configs/")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="overrides")
    parser.add_argument("--restart", action="store_true", help="remove the run's folder and start over")
    arguments = parser.parse_args()
    return load_config(arguments.config, config_class, arguments.overrides), arguments


def load_config(path: str | Path, config_class: type[Section], overrides: list[str] = ()) -> Section:
    """Read a YAML config on its bases, put `section.key=value` overrides over it, and check the result.

    Raises UserError naming the file (or --set), the key's path and, for a typo, the nearest valid key.
    """
    path = Path(path)
    try:
        values, origins = _read_with_bases(path, config_class, ())
        for override in overrides:
            origin = f"--set {override if len(override) < 80 else _short(override)}"
            key, equals, text = override.partition("=")
            if not equals:
                raise UserError(f"{origin}: write it as section.key=value")
            value = parse_yaml(text, origin)
            for part in reversed(key.split(".")):
                value = {part: value}
            origin = f"--set {key if len(key) < 80 else _short(key)}"
            _check_keys(value, config_class, origin, values)
            _merge(values, value, origins, origin)
    except RecursionError as error:
        raise UserError(f"{path}: a part of it contains itself, or goes too deep") from error
    try:
        config = config_class.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        tags = set(_kinds(config_class.model_fields["model"].annotation))  # pydantic's, not the file's
        names = (part for part in first["loc"] if isinstance(part, str) and part.isidentifier())
        keys = tuple(name for name in names if name not in tags)
        origin = next((origins[keys[:n]] for n in range(len(keys), 0, -1) if keys[:n] in origins), str(path))
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] not in ("missing", "value_error"):
            message += f", not {_short(first['input'])}"
        message = message[:1].lower() + message[1:]
        raise UserError(": ".join(filter(None, (origin, ".".join(keys), message)))) from error
    if config.run.name is None:
        config = config.model_copy(update={"run": config.run.model_copy(update={"name": path.stem})})
    return config


def save_config(config: Section, path: str | Path) -> None:
    """Write the whole resolved config as YAML."""
    Path(path).write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


class _Loader(yaml.SafeLoader):
    """YAML in which a key comes once, and dates are words."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1 and key != "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key} stands there twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


_Loader.add_constructor("tag:yaml.org,2002:timestamp", _Loader.construct_yaml_str)


def parse_yaml(text: str, origin: str) -> object:
    """What YAML says. Raises UserError, naming its origin, where it is none."""
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{origin}: not YAML: {' '.join(str(error).split())[:200]}") from error


def _read_with_bases(path: Path, config_class: type[Section], above: tuple[Path, ...]) -> tuple[dict, dict]:
    """A file's values over its base's, and which file set each key path."""
    if path.resolve() in above:
        raise UserError(f"{path}: base: the bases go in a circle")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: no such config ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{path}: not YAML: not UTF-8") from error
    own = parse_yaml(text, str(path)) or {}
    if not isinstance(own, dict):
        raise UserError(f"{path}: a config is a mapping of sections, not a {type(own).__name__}")
    base = own.pop("base", None)
    values, origins = {}, {}
    if not isinstance(base, str | None) or (base and (not base.isprintable() or len(base) > 255)):
        raise UserError(f"{path}: base: the name of a config beside it, not {_short(base)}")
    if base is not None:
        values, origins = _read_with_bases(path.parent / base, config_class, (*above, path.resolve()))
    _check_keys(own, config_class, str(path), values)
    _merge(values, own, origins, str(path))
    return values, origins


def _check_keys(
    values: dict, section: type[BaseModel], origin: str, base: dict, above: tuple[str, ...] = ()
) -> None:
    """Refuse a key that the section doesn't know, with the nearest that it knows."""
    for key, value in values.items():
        field = section.model_fields.get(key)
        plain = isinstance(key, str) and key.isprintable() and len(key) < 60
        key_path = ".".join((*above, key if plain else _short(key)))
        if field is None:
            near = difflib.get_close_matches(str(key), section.model_fields, n=1, cutoff=0.5)
            known = f"did you mean {'.'.join((*above, near[0]))}?" if near else _known_keys(section, above)
            raise UserError(f"{origin}: unknown key {key_path}; {known}")
        kinds = _kinds(field.annotation)
        if kinds:
            below = base.get(key) if isinstance(base.get(key), dict) else {}
            default = next(iter(kinds))
            if not isinstance(value, dict):
                raise UserError(f"{origin}: {key_path} is a section; {_known_keys(kinds[default], above)}")
            kind = value.get("kind", below.get("kind", default))
            if not isinstance(kind, str) or kind not in kinds:
                raise UserError(
                    f"{origin}: {key_path}.kind: no kind {_short(kind)}; known: {', '.join(kinds)}"
                )
            _check_keys(value, kinds[kind], origin, below, (*above, key))


def _short(value: object) -> str:
    """A value in a message of one line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _kinds(annotation: object) -> dict[str, type[BaseModel]]:
    """The sections that a key may have, by their kind; the first is the default. Empty for a plain value."""
    sections = [part for part in (annotation, *get_args(annotation)) if isinstance(part, type)]
    kinds = {}
    for section in sections:
        if issubclass(section, Section):
            kind = section.model_fields.get("kind")
            kinds |= dict.fromkeys(get_args(kind.annotation) if kind else [""], section)
    return kinds


def _known_keys(section: type[BaseModel], above: tuple[str, ...]) -> str:
    return f"known in {'.'.join(above) or 'a config'}: {', '.join(section.model_fields)}"


def _merge(values: dict, over: dict, origins: dict, origin: str, above: tuple[str, ...] = ()) -> None:
    """Put `over` on `values` in place, mapping by mapping, noting where each key comes from.

    A section of another kind replaces its base's, of which nothing fits it.
    """
    for key, value in over.items():
        origins[(*above, key)] = origin
        below = values.get(key)
        if isinstance(value, dict):
            kept = isinstance(below, dict) and value.get("kind") in (None, below.get("kind"))
            values[key] = below if kept else {}
            _merge(values[key], value, origins, origin, (*above, key))
        else:
            values[key] = value
