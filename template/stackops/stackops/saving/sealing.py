"""Encryption with age, for the public key of whoever may read backups: the stack itself cannot."""

from pathlib import Path

from stackops.errors import StackError, one_line

SUFFIX = ".age"


class Seal:
    """Encrypts for a recipient (age1…), or leaves everything as it is if there is none."""

    def __init__(self, recipient: str = ""):
        """Raises StackError if it is no recipient."""
        self.recipient, self._keys = recipient, []
        if recipient:
            import pyrage

            try:
                self._keys = [pyrage.x25519.Recipient.from_str(recipient)]
            except pyrage.RecipientError as error:
                raise StackError(
                    f"BACKUP_AGE_RECIPIENT is no public key of age ({one_line(error, 60)}); "
                    "it must look like age1…"
                ) from None

    def data(self, content: bytes) -> bytes:
        """Return the encrypted bytes."""
        if not self._keys:
            return content
        import pyrage

        return pyrage.encrypt(content, self._keys)

    def file(self, path: Path) -> Path:
        """Encrypt a file; return the path of the encrypted one, which takes its place."""
        if not self._keys:
            return path
        import pyrage

        sealed = path.with_name(path.name + SUFFIX)
        pyrage.encrypt_file(str(path), str(sealed), self._keys)
        path.unlink()
        return sealed


class Opener:
    """Decrypts with the private key in a file; without one, only what is not encrypted can be read."""

    def __init__(self, path: Path | None = None):
        """Raises StackError if the file holds no key."""
        self._keys = []
        if path is None or not path.is_file():
            return
        import pyrage

        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        try:
            self._keys = [
                pyrage.x25519.Identity.from_str(line) for line in lines if line and not line.startswith("#")
            ]
        except pyrage.IdentityError:
            raise StackError(
                "the AGE_IDENTITY file has no private key of age; it must look like AGE-SECRET-KEY-1…"
            ) from None

    def need(self) -> None:
        """Raise StackError unless there is a key."""
        if not self._keys:
            raise StackError(
                "the backup is encrypted: say AGE_IDENTITY=FILE, the file with the private key of age"
            )

    def data(self, content: bytes, name: str) -> bytes:
        """Return the bytes as they were. Raises StackError if the key does not fit or they were altered."""
        import pyrage

        self.need()
        try:
            return pyrage.decrypt(content, self._keys)
        except pyrage.DecryptError as error:
            raise StackError(f"{name} cannot be decrypted: {one_line(error, 80)}") from None

    def file(self, path: Path, target: Path) -> None:
        """Write a file as it was to `target`. Raises StackError as above."""
        import pyrage

        self.need()
        try:
            pyrage.decrypt_file(str(path), str(target), self._keys)
        except pyrage.DecryptError as error:
            raise StackError(f"{path.name} cannot be decrypted: {one_line(error, 80)}") from None
