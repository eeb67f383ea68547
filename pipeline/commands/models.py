"""`maskmill models`."""

import click


@click.command()
def models() -> None:
    """The models, and where their weights come from.

    \b
    Example:
      maskmill models
    """
    from maskmill.config import names, read_yaml

    for name in names("model"):
        tree = read_yaml("model", name)
        click.echo(f"{name:<8} {tree['image_encoder']['img_size']:>4} px  {tree.get('about', '')}")
    click.echo(
        "\nPublished weights: the checkpoint links in the README of github.com/facebookresearch/segment-anything;\n"
        "pass the file with --checkpoint. The digits in its name are the first of its sha256."
    )
