"""``python -m bioproxy``: the command `bioproxy`, for where its script is not on the path (`bioproxy.command.main`)."""

from bioproxy.command.main import main

if __name__ == "__main__":
    main()
