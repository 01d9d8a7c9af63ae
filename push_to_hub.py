"""Upload a run's model and its card to the Hugging Face Hub: python push_to_hub.py --repo name/mae_64"""

import argparse
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id

from errors import UserError, command
from training.card import write_card
from training.finished import list_runs, read_run

FILES = ["config.json", "model.safetensors", "README.md", "samples.png"]


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", help="a run folder; by default the newest under --runs")
    parser.add_argument("--runs", default="runs", help="folder of runs")
    parser.add_argument("--repo", required=True, help="name/repo on the Hub; made where there is none")
    # None where it isn't asked for: then the account's own default holds
    parser.add_argument("--private", action="store_true", default=None, help="make a private repository")
    arguments = parser.parse_args()

    check_repo_name(arguments.repo)
    if arguments.run:
        run = read_run(arguments.run)
    else:
        runs = list_runs(arguments.runs)[0]
        if not runs:
            raise UserError(f"{arguments.runs}: no finished run there; name one with --run")
        run = runs[-1]
    if get_token() is None:
        raise UserError("not logged in to the Hub; run `hf auth login`, or set HF_TOKEN to a write token")

    write_card(run.folder, arguments.repo)
    try:
        url = upload(run.folder / "model", arguments.repo, arguments.private, f"Step {run.step}")
    except HfHubHTTPError as error:
        reason = (error.server_message or error.response.reason_phrase).splitlines()[0]
        advice = "try again later"
        if error.response.status_code in (401, 403):
            advice = "log in with a token that may write there (`hf auth login`)"
        raise UserError(
            f"{arguments.repo}: refused by the Hub ({error.response.status_code} {reason}); {advice}"
        ) from error
    except (HTTPError, ConnectionError, RuntimeError) as error:  # RuntimeError: a transfer that broke off
        raise UserError(
            f"{arguments.repo}: the Hub is not to be reached ({type(error).__name__}: "
            f"{' '.join(str(error).split())}); check the network and start the same command again"
        ) from error

    print(f"{run.folder}: step {run.step} is at {url}")
    print(f'load_{"generator" if run.is_generator else "tokenizer"}("{arguments.repo}")')


def check_repo_name(repo: str) -> None:
    """Raise UserError unless `repo` can be a repository's full name on the Hub."""
    try:
        validate_repo_id(repo)
        valid = "/" in repo
    except HFValidationError:
        valid = False
    if not valid:
        raise UserError(
            f"--repo {repo}: not a name on the Hub; write it as name/repo, of letters, digits, -, _ and ."
        )


def upload(model: Path, repo: str, private: bool | None, message: str) -> str:
    """Put a model folder's files into a repository, which is made if need be; returns its URL."""
    hub = HfApi()
    url = hub.create_repo(repo, private=private, exist_ok=True)
    if private and not hub.model_info(repo).private:
        raise UserError(f"{repo}: is public already; make it private in its settings, or leave out --private")
    hub.upload_folder(repo_id=repo, folder_path=model, allow_patterns=FILES, commit_message=message)
    return str(url)


if __name__ == "__main__":
    main()
