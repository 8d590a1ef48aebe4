"""Names of the keys in etcd (docs/architecture.md): pure string work, the only place that knows the layout."""

from __future__ import annotations

from dataclasses import dataclass

from reconciler.core.model import DATA_FILE, REGO_FILE, PolicyName, policy_name


@dataclass(frozen=True, slots=True)
class Keyspace:
    """Both prefixes, each ending in ``/`` so that ``/policies/`` never covers ``/policies-old``."""

    policies: str = "/policies/"
    own: str = "/regops/"

    def rego(self, policy: PolicyName) -> str:
        """Where the policy's ``rego.rego`` lies."""
        return f"{self.policies}{policy}/{REGO_FILE}"

    def data(self, policy: PolicyName) -> str:
        """Where the policy's ``data.json`` lies."""
        return f"{self.policies}{policy}/{DATA_FILE}"

    def policy_of(self, key: str) -> tuple[PolicyName, str] | None:
        """The policy and file that a key under ``policies`` holds, ``None`` when it is none of ours."""
        folder, _, file = key.removeprefix(self.policies).rpartition("/")
        if not key.startswith(self.policies) or file not in {REGO_FILE, DATA_FILE}:
            return None
        try:
            return policy_name(folder), file
        except ValueError:
            return None

    @property
    def leader(self) -> str:
        """The election key: leased, its create_revision is the fence of every write."""
        return f"{self.own}leader/holder"

    @property
    def suspended(self) -> str:
        """Present while a person has stopped the applying."""
        return f"{self.own}suspended"

    @property
    def requested(self) -> str:
        """The last 'reconcile now' token."""
        return f"{self.own}requested"

    @property
    def pushed(self) -> str:
        """The last commit that a replica pushed without leading: a word to the leader to look."""
        return f"{self.own}pushed"

    @property
    def confirmed(self) -> str:
        """The last confirmation of blocked deletions."""
        return f"{self.own}confirmed"

    @property
    def applied(self) -> str:
        """The commit that etcd equals; the one key that agents watch."""
        return f"{self.own}applied"

    @property
    def applying(self) -> str:
        """Present while an apply spans transactions."""
        return f"{self.own}applying"

    @property
    def status(self) -> str:
        """The leader's conditions, for every replica to show."""
        return f"{self.own}status"

    @property
    def passes(self) -> str:
        """Prefix of the log of passes."""
        return f"{self.own}passes/"

    def logged(self, name: str) -> str:
        """One entry of the log of passes."""
        return f"{self.passes}{name}"

    @property
    def metas(self) -> str:
        """Prefix of the policies' `Meta` records."""
        return f"{self.own}meta/"

    def meta(self, policy: PolicyName) -> str:
        """The policy's `Meta` record."""
        return f"{self.metas}{policy}"

    @property
    def helds(self) -> str:
        """Prefix of the `Held` records."""
        return f"{self.own}held/"

    def held(self, policy: str) -> str:
        """The `Held` record of a policy, or of a raw path where the name is impossible."""
        return f"{self.helds}{policy}"

    def idempotency(self, caller: str, key: str = "") -> str:
        """The claim or the answer of one idempotency key of one caller (both hashed); the caller's prefix without."""
        return f"{self.own}idempotency/{caller}/{key}"

    @property
    def receipts(self) -> str:
        """Prefix of the agents' last receipts, without a lease."""
        return f"{self.own}agents/"

    def receipt(self, datacentre: str, agent: str) -> str:
        """One agent's last receipt."""
        return f"{self.receipts}{datacentre}/{agent}"

    @property
    def alives(self) -> str:
        """Prefix of the agents' leased signs of life."""
        return f"{self.own}alive/"

    def alive(self, datacentre: str, agent: str) -> str:
        """One agent's sign of life, under its lease."""
        return f"{self.alives}{datacentre}/{agent}"


def prefix_end(prefix: str) -> str:
    """The first key after all keys that begin with ``prefix`` (etcd's range end)."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)
