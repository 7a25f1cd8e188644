"""The command line: `mmdd COMMAND`, and the same commands as files in `jobs/`.

`commands.py` has the commands, `arguments.py` turns a preset, a file and arguments into settings, `exits.py` turns
errors into sentences and exit statuses. Imports neither torch nor Ray, so `--help` answers at once.
"""

from mmdd_ray.cli.arguments import parse
from mmdd_ray.cli.exits import EXIT_FAILED, EXIT_USER_ERROR, main
from mmdd_ray.cli.jobs import start
from mmdd_ray.engine.interrupt import EXIT_INTERRUPTED

__all__ = ["EXIT_FAILED", "EXIT_INTERRUPTED", "EXIT_USER_ERROR", "main", "parse", "start"]
