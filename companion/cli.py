"""The command line: `companion verify`."""

import json
import sys
import time
from pathlib import Path
from typing import Annotated

import tyro

app = tyro.extras.SubcommandApp()


@app.command
def verify(
    chapter: str | None = None,
    label: str | None = None,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> int:
    """Run the checks behind the book's equations and print a table of what they found.

    The exit code is 1 when an equation does not close or a mutant survives, and 2 for an unknown name.

    Args:
        chapter: only the checks of this chapter, such as "elbo".
        label: only the check of this equation, such as "elbo-gap-kl".
        json_file: also write the results to this file.
    """
    from companion import derivations

    try:
        checks = derivations.select(chapter, label)
    except ValueError as error:
        print(f"companion verify: {error}", file=sys.stderr)
        return 2
    start = time.perf_counter()
    width = max(len(check.label) for check in checks)
    print(f"{'equation':<{width}}  {'kind':<10}  {'route':<11}  {'error':>8}  {'allowed':>8}  mutants rejected")
    results = []
    for check in checks:
        result = check.run()
        results.append(result)
        rejected = sum(m.rejected for m in result.mutants)
        print(
            f"{result.label:<{width}}  {result.kind:<10}  {result.route:<11}  {result.error:8.1e}  "
            f"{result.tolerance:8.1e}  {rejected} of {len(result.mutants)}{'' if result.ok else '  FAILED'}",
            flush=True,
        )
    failed = [result for result in results if not result.ok]
    for result in failed:
        print(f"\n{result!r}")
    mutants = [m for result in results for m in result.mutants]
    print(
        f"\n{len(results) - len(failed)} of {len(results)} equations checked, "
        f"{sum(m.rejected for m in mutants)} of {len(mutants)} mutants rejected, "
        f"{time.perf_counter() - start:.1f} s"
    )
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps([r.to_dict() for r in results], indent=1, ensure_ascii=False) + "\n")
    return 1 if failed else 0


def main() -> None:
    sys.exit(app.cli(prog="companion", description="Generative Models, Verified: the book's command line."))


if __name__ == "__main__":
    main()
