"""``python -m bioproxy``: the command `bioproxy`, for where its script is not on the path (`bioproxy.command.main`).

Python runs this module under the name ``__main__``.  If other code imports it, such as a tool that looks at all
modules, it has another name, and nothing happens.
"""

from bioproxy.command.main import main

if __name__ == "__main__":
    main()
