"""``python -m bioproxy``: the command `bioproxy`, for where its script is not on the path (`bioproxy.command.main`).

Python runs this module under the name ``__main__``.  Whoever imports it, such as a tool that looks at all modules, has
another name for it, and nothing happens.
"""

from bioproxy.command.main import main

if __name__ == "__main__":
    main()
