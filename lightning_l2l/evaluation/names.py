"""Names of rules, variants and problems, which users choose, in figures."""


def as_text(name: str) -> str:
    """A name as matplotlib shows it unchanged: a dollar would begin a formula, and a leading _ hides it in legends."""
    return name.replace("$", r"\$").lstrip("_")
