from balance.runtime.wording import counted, size


def test_a_count_agrees_with_its_noun() -> None:
    assert [counted(n, "part") for n in (0, 1, 2, 12_000)] == ["0 parts", "1 part", "2 parts", "12,000 parts"]


def test_a_size_has_the_unit_that_leaves_three_digits() -> None:
    sizes = {0: "0 bytes", 1: "1 byte", 999: "999 bytes", 1000: "1 KB", 78_300: "78.3 KB", 999_400: "999 KB"}
    sizes |= {999_600: "1 MB", 2_048_000: "2.05 MB", 26e9: "26 GB", 1e12: "1 TB", 3e15: "3 PB", 4e18: "4e+03 PB"}
    assert {given: size(given) for given in sizes} == sizes
