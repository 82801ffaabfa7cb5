"""Links: the server signs, and the bytes go straight between client and store.

MLflow offers presigned transfers when the server's repository can make the URLs. Its own repository for S3
can, but signs the address by which the server reaches the store. Clients may know it by another (STORE_URL),
and a signature covers the host name.
"""

import os

from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import (
    ArtifactRepository,
    MultipartDownloadMixin,
    MultipartUploadMixin,
)
from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository, _get_s3_client

from stackops import failures
from stackops.stores.relay import RelayArtifactRepository


class _Signer:
    """A boto3 client for S3 whose URLs are made for STORE_URL."""

    def __init__(self, client, signer):
        self._client = client
        self.generate_presigned_url = signer.generate_presigned_url

    def __getattr__(self, name: str):
        return getattr(self._client, name)


class SigningRepository(S3ArtifactRepository):
    """MLflow's own, whose links are for the address that clients use."""

    def _get_s3_client(self):
        client = super()._get_s3_client()
        address = os.environ.get("STORE_URL")
        return _Signer(client, _get_s3_client(s3_endpoint_url=address)) if address else client

    def get_download_presigned_url(self, artifact_path, expiration=300):
        """Return the URL of an object; a name that the store does not take is the client's fault."""
        try:
            return super().get_download_presigned_url(artifact_path, expiration)
        except MlflowException as error:
            if failures.unfit(artifact_path, error.__context__):
                raise MlflowException.invalid_parameter_value(failures.UNFIT) from None
            raise


class PresignedArtifactRepository(RelayArtifactRepository, MultipartUploadMixin, MultipartDownloadMixin):
    """The relay for small uploads, presigned URLs for the rest."""

    def _wrap(self, uri: str) -> ArtifactRepository:
        return SigningRepository(uri, tracking_uri=self.tracking_uri, registry_uri=self.registry_uri)

    def create_multipart_upload(self, local_file, num_parts=1, artifact_path=None):
        """Begin an upload and return the URLs of its parts."""
        return self._store.create_multipart_upload(local_file, num_parts, artifact_path)

    def complete_multipart_upload(self, local_file, upload_id, parts, artifact_path=None):
        """Make the object of the parts that a client has sent."""
        self._store.complete_multipart_upload(local_file, upload_id, parts, artifact_path)

    def abort_multipart_upload(self, local_file, upload_id, artifact_path=None):
        """Throw the parts away."""
        self._store.abort_multipart_upload(local_file, upload_id, artifact_path)

    def get_download_presigned_url(self, artifact_path, expiration=300):
        """Return the URL of an object for `expiration` seconds."""
        return self._store.get_download_presigned_url(artifact_path, expiration)


def register() -> None:
    """Sign for STORE_URL also where a run lies in the store itself, so that browsers can follow its links."""
    from mlflow.store.artifact.artifact_repository_registry import _artifact_repository_registry

    _artifact_repository_registry.register("s3", SigningRepository)
