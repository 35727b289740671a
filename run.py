"""Train and test one model: `python run.py model=dien`. `python run.py --help` lists the choices and settings."""

from deepinterest import ctrl_c

if __name__ == "__main__":  # before anything slow is imported
    ctrl_c.quit_at_once()

import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from deepinterest.command_line import checked, refuse_class_names
from deepinterest.config import Task
from deepinterest.errors import sentences
from deepinterest.folders import name_after
from deepinterest.launch import joined
from deepinterest.machine import check
from deepinterest.report.sweep import print_run_folder
from deepinterest.settings import implied, register, resolved, restored, typed
from deepinterest.sweep.processes import follow_parent, lead, own_process, run_alone

register()


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> dict[str, float]:
    follow_parent()
    refuse_class_names(cfg, HydraConfig.get().overrides.task)
    config, settings = typed(cfg), resolved(cfg)  # a wrong setting fails here, before torch is imported
    if config.task in (Task.test, Task.probe, Task.explain, Task.predict):  # as the checkpoint was trained
        from deepinterest.serving.checkpoint import as_trained

        composed, settings = settings, as_trained(settings, list(HydraConfig.get().overrides.task))
        name_after(settings, composed)
        config = restored(settings)

    if config.task is Task.train and (config.resume or config.checkpoint):
        from deepinterest.resuming import continued, start_of

        start = start_of(config)
        assert start is not None
        settings = continued(settings, list(HydraConfig.get().overrides.task), start)
        config = restored(settings)

    if HydraConfig.get().mode is RunMode.MULTIRUN and own_process(config):
        return run_alone(settings, Path(config.paths.run))

    check(config.trainer)
    from deepinterest.experiment import run

    ctrl_c.clean_up_first()
    metrics = run(config, settings)
    print_run_folder(config.paths.run)
    return metrics


if __name__ == "__main__":
    with sentences():
        sys.argv[1:] = joined(implied(checked(sys.argv[1:])))
        follow_parent()
        lead()
        main()
