"""`relay:URI`: an artifact repository that keeps every byte on the way through the server.

MLflow (3.15 and later) tells its clients to fetch and send artifacts straight from and to the store whenever
the server's own repository can make presigned URLs (`build_server_info_payload` in mlflow/server/handlers.py
asks with isinstance). A client that sees only the server then hangs. This repository does all its work with
the real one but has none of those abilities, so the server does not offer them.

Registered under the entry point group `mlflow.artifact_repository` (pyproject.toml).
"""

import os

from mlflow.entities import FileInfo
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository

from stackops import settings

PREFIX = "relay:"


def wrapped(uri: str, root: str) -> str:
    """Return the URI behind the relay URI `uri`.

    Only `root`, the stack's own store, and what lies in it can be relayed: the location of an experiment is
    chosen by clients, and `relay:file:///etc` must not become a way around MLflow's own checks. Raises
    MlflowException otherwise.
    """
    target, root = uri.removeprefix(PREFIX).rstrip("/"), root.rstrip("/")
    inside = target == root or target.startswith(root + "/")
    if not root or not inside or ".." in target.split("/"):
        raise MlflowException.invalid_parameter_value(f"{uri!r} is not part of this server's artifact store")
    return target


class RelayArtifactRepository(ArtifactRepository):
    """Passes everything on to the repository of the wrapped URI, without presigned or multipart transfers.

    Large files are spooled on disk by MLflow's server (TMPDIR), never held in memory.
    """

    def __init__(
        self, artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None
    ) -> None:
        # The registry imports this module while it is being set up itself, so it can only be imported later.
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        super().__init__(artifact_uri, tracking_uri, registry_uri)
        if settle := getattr(settings.store(os.environ), "settle", None):
            settle()
        self._store = get_artifact_repository(
            wrapped(artifact_uri, os.environ.get("ARTIFACT_URI", "")), tracking_uri, registry_uri
        )

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        """Upload one file."""
        self._store.log_artifact(local_file, artifact_path)

    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> None:
        """Upload a folder."""
        self._store.log_artifacts(local_dir, artifact_path)

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        """List one level."""
        return self._store.list_artifacts(path)

    def download_artifacts(self, artifact_path: str, dst_path: str | None = None) -> str:
        """Download a file or a folder and return its local path."""
        return self._store.download_artifacts(artifact_path, dst_path)

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        self._store._download_file(remote_file_path, local_path)

    def delete_artifacts(self, artifact_path: str | None = None) -> None:
        """Delete a file, or everything below a path."""
        self._store.delete_artifacts(artifact_path)
