"""``python -m bioproxy``: the command `bioproxy`, for where its script is not on the path (`bioproxy.command.main`).

Python runs this module under the name ``__main__``; nothing imports it.
"""

from bioproxy.command.main import main

main()
