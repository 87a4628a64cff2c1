"""A dense model from a configuration: ``python train.py model=cnn data=digits``."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from mmp.attempt import attempt
from mmp.cli import command
from mmp.conf import FOLDER
from mmp.config import register

register()


@hydra.main(version_base="1.3", config_path=str(FOLDER), config_name="train")
def main(cfg: DictConfig) -> None:
    """Train one dense model."""
    with attempt(cfg) as (run, config):
        from mmp.train_job import run_job  # torch takes seconds, which a mistake on the command line does not wait for

        run_job(run, config, cfg)


if __name__ == "__main__":
    import train as by_name  # what worker processes of a launcher import, too

    command(by_name.main)
