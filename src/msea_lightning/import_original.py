"""``python -m msea_lightning.import_original``: a plugin from a checkpoint of the original."""

from __future__ import annotations

from pathlib import Path

from msea_lightning.commands.command_line import launch
from msea_lightning.config.roots import ImportOriginalConfig


def job(config: ImportOriginalConfig) -> None:
    """Writes the plugin and says what is in it."""
    from rich.console import Console

    from msea_lightning.config.text import visible
    from msea_lightning.plugin.original import check_new, import_plugin, write_new

    checkpoint = Path(config.checkpoint).expanduser()
    folder = checkpoint.with_name(f"{checkpoint.stem}-{config.backbone.name}")
    if config.output is not None:
        folder = Path(config.output).expanduser()
    check_new(folder)
    imported = import_plugin(
        checkpoint,
        config.dataset,
        config.backbone,
        task=config.prompt.task,
        decode=config.decode,
    )
    write_new(folder, imported.plugin)
    seen = "read and fingerprinted" if imported.plugin.facts.fingerprint else "not looked at"
    console = Console(soft_wrap=True)
    for line in (
        f"{imported.used} tensors of the adapter; {imported.frozen} of the frozen language model "
        "left out",
        f"language model {config.backbone.path}: {seen}",
        f"plugin {folder}",
    ):
        console.print(visible(line), markup=False, highlight=False)


def main() -> None:
    """The command line."""
    launch(job, config_name="import_original", root=ImportOriginalConfig)


if __name__ == "__main__":
    main()
