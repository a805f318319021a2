"""The operator's page at `/`: one static file that talks to the control plane's API with the operator's key."""

from __future__ import annotations

from importlib import resources

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

# The page loads nothing from anywhere else and can't be framed.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def mount_console(app: FastAPI) -> None:
    """Serve the console at `/`. The page itself holds no data, so it needs no key; what it asks for does."""
    page = (resources.files("console") / "console.html").read_text(encoding="utf-8")

    @app.get("/", include_in_schema=False)
    async def console() -> HTMLResponse:
        return HTMLResponse(page, headers=HEADERS)
