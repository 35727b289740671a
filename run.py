"""Train and test one model: `python run.py model=dien`. `python run.py --help` lists the choices and settings."""

import hydra
from omegaconf import DictConfig

from deepinterest.config import register, resolved, typed
from deepinterest.errors import sentences
from deepinterest.report.sweep import print_run_folder

register()


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> dict[str, float]:
    config = typed(cfg)  # a wrong setting fails here, before torch is imported

    from deepinterest.experiment import run

    metrics = run(config, resolved(cfg))
    print_run_folder(config.paths.run)
    return metrics


if __name__ == "__main__":
    with sentences():
        main()
