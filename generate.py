"""Generate images with a generator run: a grid and single pictures."""

import argparse
from pathlib import Path

import torch
from torchvision.utils import make_grid, save_image
from tqdm import tqdm

from errors import UserError, command
from training.finished import load_with_tokenizer, newest_run, read_run


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", help="a generator's run folder; by default the newest under --runs")
    parser.add_argument("--runs", default="runs", help="folder of runs")
    parser.add_argument("--num", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("samples"), help="folder for grid.png, 000000.png …")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="sampling steps; by default the run's config's")
    parser.add_argument("--temperature", type=float, help="likewise")
    parser.add_argument("--randomness", type=float, help="likewise: scale of the confidence's annealed noise")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--columns", type=int, default=8, help="of the grid")
    arguments = parser.parse_args()

    run = read_run(arguments.run) if arguments.run else newest_run(arguments.runs, generator=True)
    if not run.is_generator:
        raise UserError(f"{run.folder}: a tokenizer's run; generate from one of train_maskgit.py")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator, tokenizer = (network.to(device) for network in load_with_tokenizer(run))
    sampling = run.config.sampling.model_dump()
    for name in ("steps", "temperature", "randomness"):
        if getattr(arguments, name) is not None:
            sampling[name] = getattr(arguments, name)

    arguments.out.mkdir(parents=True, exist_ok=True)
    images = []
    for start in tqdm(range(0, arguments.num, arguments.batch_size), desc="batches"):
        num = min(arguments.batch_size, arguments.num - start)
        codes = generator.generate(num=num, seed=arguments.seed, first_index=start, **sampling)
        images.append(tokenizer.decode(codes).cpu())
    images = torch.cat(images)
    for index, image in enumerate(images):
        save_image(image, arguments.out / f"{index:06d}.png")
    save_image(make_grid(images, nrow=arguments.columns, pad_value=1), arguments.out / "grid.png")
    print(f"{arguments.out / 'grid.png'} and {len(images)} pictures, from {run.folder} at step {run.step}")


if __name__ == "__main__":
    main()
