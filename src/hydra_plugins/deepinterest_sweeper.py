"""Where Hydra looks for sweepers: it takes none from elsewhere than `hydra_plugins`."""

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

__all__ = ["Sweeper"]


class Sweeper(BasicSweeper):
    """Hands the command to deepinterest.sweep.jobs, which is imported in a sweep only."""

    def sweep(self, arguments: list[str]) -> list[object]:
        """Run all jobs; raises the first failed one's error at the end."""
        from deepinterest.sweep.jobs import sweep

        assert self.config is not None and self.launcher is not None and self.hydra_context is not None
        return sweep(self.config, self.launcher, self.hydra_context.config_loader, arguments)
