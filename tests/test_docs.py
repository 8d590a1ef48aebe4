"""The documents say what the code does."""

from pathlib import Path

from regops.settings_doc import document

ROOT = Path(__file__).parent.parent


def test_the_settings_page_is_what_the_settings_say() -> None:
    assert (ROOT / "docs" / "settings.md").read_text() == document(), "run: python -m regops.settings_doc"
