"""Train and test one model: `python run.py model=dien`. `python run.py --help` lists the choices and settings."""

import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from deepinterest.config import Task, implied, register, resolved, restored, typed
from deepinterest.errors import sentences
from deepinterest.report.sweep import print_run_folder

register()


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> dict[str, float]:
    config, settings = typed(cfg), resolved(cfg)  # a wrong setting fails here, before torch is imported
    if config.task in (Task.test, Task.probe, Task.explain):  # what the checkpoint was trained with needs no repeating
        from deepinterest.serving.checkpoint import as_trained

        settings = as_trained(settings, list(HydraConfig.get().overrides.task))
        config = restored(settings)

    from deepinterest.experiment import run

    metrics = run(config, settings)
    print_run_folder(config.paths.run)
    return metrics


if __name__ == "__main__":
    sys.argv[1:] = implied(sys.argv[1:])
    with sentences():
        main()
