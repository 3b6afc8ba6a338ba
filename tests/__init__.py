"""bioproxy's tests: trial test cases, so that pytest and trial both run them."""
