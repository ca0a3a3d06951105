"""`rayline chaos`: break what runs, and see whether anybody notices."""

import click

from rayline.deploy.commands.chaos_calm import command as calm
from rayline.deploy.commands.chaos_matrix import command as matrix
from rayline.deploy.commands.chaos_soak import command as soak

command = click.Group(
    "chaos",
    commands=[calm, matrix, soak],
    help="Break processes of a running deployment and compare its streams with undisturbed ones: one fault after "
    "another (matrix), or by chance for a long time (soak); or break nothing on a busy machine (calm).",
)
