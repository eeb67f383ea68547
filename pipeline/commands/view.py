"""`maskmill view`."""

import click


@click.command()
@click.argument("build")
@click.option("--images", metavar="IMAGES", help="Where the images lie now. Default: where they were.")
@click.option("--port", default=8765, show_default=True, help="Where the page is served; 0: any free port.")
def view(build: str, images: str | None, port: int) -> None:
    """A web page to walk through a build: images with their masks, and filter sliders that act at once.

    It is served to this machine only, until Ctrl-C. From elsewhere: ssh -L 8765:localhost:8765 HOST.

    \b
    Examples:
      maskmill view masks/
      maskmill view s3://bucket/masks --port 9000
    """
    from maskmill.report.server import HOST, serve
    from maskmill.report.viewer import Viewer
    from maskmill.storage.build import Build

    with serve(Viewer(Build(build), images), port) as server:
        click.echo(f"http://{HOST}:{server.server_address[1]}/  (Ctrl-C ends it)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            click.echo("ended", err=True)
