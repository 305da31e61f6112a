"""The Lua scripts: each is loaded, and uses only constants, keys and fields that are defined and documented."""

from __future__ import annotations

import re
from pathlib import Path

import redis
from tests.conftest import REPOSITORY

from latentfarm.ledger import lua_scripts
from latentfarm.ledger.constants import LUA_CONSTANTS

SCRIPTS = {path.stem: path.read_text() for path in (Path(lua_scripts.__file__).parent / "scripts").glob("*.lua")}
SHARED = {"_common", "_transitions"}
DATA_MODEL = SCRIPTS["_common"][: SCRIPTS["_common"].index("\ndo\n")]


def code_of(script: str) -> str:
    """Return a script without comments and texts."""
    return re.sub(r"'[^']*'", "''", re.sub(r"--.*", "", script))


def test_every_script_is_loaded_and_every_loaded_script_exists() -> None:
    loaded = lua_scripts.Scripts(redis.Redis())
    assert set(vars(loaded)) == set(SCRIPTS) - SHARED


def test_every_shared_function_is_found_and_used() -> None:
    defined = re.findall(r"^local function (\w+)", SCRIPTS["_common"] + SCRIPTS["_transitions"], re.MULTILINE)
    loaded = {name: lua_scripts._source(name) for name in set(SCRIPTS) - SHARED}
    assert [name for name in defined if not any(f"function {name}(" in source for source in loaded.values())] == []
    for name, source in loaded.items():
        called = set(re.findall(r"(?<![.\w])([a-z_]+)\(", code_of(source))) & {*defined}
        assert [each for each in called if f"local function {each}(" not in source] == [], name


def test_scripts_use_only_constants_that_exist() -> None:
    for name, script in SCRIPTS.items():
        code = code_of(script)
        local = {word for line in re.findall(r"local ([A-Z_, ]+) =", code) for word in line.split(", ")}
        used = set(re.findall(r"\b[A-Z][A-Z_]{2,}\b", code))
        assert used - local - {"ARGV", "KEYS", *LUA_CONSTANTS} == set(), name


def test_no_text_or_local_name_of_a_script_is_that_of_a_constant() -> None:
    for name, script in SCRIPTS.items():
        code = re.sub(r"--.*", "", script)
        texts = " ".join(re.findall(r"'[^']*'", code) + re.findall(r"local ([\w, ]+)", code))
        assert set(re.findall(r"\w+", texts)) & {*LUA_CONSTANTS} == set(), name


def test_every_constant_of_a_script_is_used() -> None:
    used = {word for script in SCRIPTS.values() for word in re.findall(r"\b[A-Z][A-Z_]+\b", code_of(script))}
    # the states and pausers are whole enums
    unused = {name for name in LUA_CONSTANTS if not name.startswith(("BATCH_", "PAUSED_BY_"))} - used
    assert unused == set()


def test_every_key_is_in_the_data_model() -> None:
    documented = set(re.findall(r"^-- ([a-z_]+)\S* +(?:string|hash|zset|set|stream|any) ", DATA_MODEL, re.MULTILINE))
    # a key may have the name of a channel
    channels = set(re.findall(r"^-- Channel \{lf\}:([a-z]+):", DATA_MODEL, re.MULTILINE)) - documented
    used = {key for script in SCRIPTS.values() for key in re.findall(r"'\{lf\}:([a-z_]+)", script)} - channels
    for script in SCRIPTS.values():
        # keys of one batch that are removed in a loop over their names
        for kinds in re.findall(r"for _, kind in ipairs\(\{(.*?)\}\)", script, re.DOTALL):
            used |= set(re.findall(r"'(\w+)'", kinds))
    # keys that no script uses
    for path in Path(lua_scripts.__file__).parents[1].rglob("*.py"):
        used |= set(re.findall(r'"\{lf\}:([a-z_]+)"', path.read_text())) - channels
    assert used == documented


def test_every_key_is_in_the_slot_of_the_declared_one() -> None:
    for name, script in SCRIPTS.items():
        assert re.findall(r"redis\.p?call\('[A-Z]+', '(?!\{lf\}:)[^']*'", script) == [], name


def test_every_field_of_a_batch_is_in_the_data_model() -> None:
    fields = DATA_MODEL[DATA_MODEL.index("-- Fields of {lf}:batch:<b>:") :]
    created = re.search(r"redis\.call\('HSET', batch_key\(batch\), ([^)]*)\)", SCRIPTS["create_batch"])
    assert created is not None
    named = re.findall(r"'([a-z_]+)',", created[1])
    assert [name for name in named if not re.search(rf"\b{name}\b", fields)] == []


def test_each_role_may_run_every_command_of_its_scripts() -> None:
    worker = {"lease", "renew", "commit", "fail", "release", "crash", "expire_leases", "heartbeat", "sign_off"}
    worker |= {"expired_claim"}
    both = {"drop_flushed", "cancel", "mark_deleting", "deletion_claim", "delete_batch"}
    worker |= {"flush_claim", "flush_postpone", "drop_flushed", "orphans_claim", "orphans_resolve"}
    worker |= {"webhook_claim", "webhook_resolve"}
    scripts = {"worker": worker | both, "producer": {*SCRIPTS} - worker - SHARED | both}
    acl = (REPOSITORY / "docs/security/redis-acl.txt").read_text().splitlines()
    for role, names in scripts.items():
        [line] = [line for line in acl if line.startswith(f"user {role} ")]
        allowed = set(re.findall(r"\+([a-z]+)", line))
        called = {
            command.lower()
            for name in names
            for command in re.findall(r"redis\.p?call\('([A-Z]+)'", lua_scripts._source(name))
        }
        assert called - allowed == set(), role
