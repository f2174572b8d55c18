"""Odd plugins for the planner's tests."""

HELPER = '''
from tunekit import Plugin, PluginConfig, Problem, hookimpl, hookspec
from tunekit.values import *

class Nothing(PluginConfig):
    pass

class Other(Plugin[Nothing]):
    @hookimpl
    def tunekit_optimizer(self, bundle: ModelBundle):
        return "other"

class Third(Other):
    pass

class Giver(Plugin[Nothing]):
    provides = frozenset({"gift"})

class Needy(Plugin[Nothing]):
    requires = frozenset({"gift"})

class Loner(Plugin[Nothing]):
    conflicts = frozenset({"gift"})

class Chicken(Plugin[Nothing]):
    provides = frozenset({"chicken"})
    after = frozenset({"egg"})

class Egg(Plugin[Nothing]):
    provides = frozenset({"egg"})
    after = frozenset({"chicken"})

class Patch(Plugin[Nothing]):
    @hookimpl
    def tunekit_patch(self, bundle: ModelBundle) -> Report:
        bundle.model.append("patched")
        return Report("patched")

class Importing(Plugin[Nothing]):
    @hookimpl
    def tunekit_patch(self, bundle: ModelBundle) -> Report:
        import fake_kernels
        return Report("imported")

class Worried(Plugin[Nothing]):
    @hookimpl
    def tunekit_check(self, plan: Plan, machine: Machine):
        yield Problem("use.worried", "never on a Tuesday", "wait a day")

class Typo(Plugin[Nothing]):
    @hookimpl
    def tunekit_pach(self, bundle):
        return None

class Wrapper(Plugin[Nothing]):
    @hookimpl(wrapper=True)
    def tunekit_patch(self, bundle: ModelBundle):
        return (yield)

class Number:
    @hookspec("chain")
    def fake_number(self, number: int) -> int:
        """Change a number."""

class Publisher(Plugin[Nothing]):
    hookspecs = (Number,)
    @hookimpl
    def tunekit_attach_adapter(self, bundle: ModelBundle, context: Context) -> ModelBundle:
        return bundle.with_model([*bundle.model, context.calls.chain("fake_number", "number", 3)])

class Double(Plugin[Nothing]):
    @hookimpl
    def fake_number(self, number: int) -> int:
        return number * 2

class Add(Plugin[Nothing]):
    @hookimpl
    def fake_number(self, number: int) -> int:
        return number + 1

class Again(Plugin[Nothing]):
    @hookimpl
    def tunekit_format_data(self, rows: Rows):
        return (Example(row.number, row.where, text=row.values["text"]) for row in rows.read())

class BadType(Plugin[Nothing]):
    @hookimpl
    def tunekit_patch(self, bundle: ModelBundle) -> Report:
        return "no report"

class Raises(Plugin[Nothing]):
    @hookimpl
    def tunekit_patch(self, bundle: ModelBundle) -> Report:
        raise ZeroDivisionError("oh")

class Deaf(Plugin[Nothing]):
    @hookimpl
    def tunekit_event(self, event: Event) -> None:
        raise ValueError("not listening")
'''
