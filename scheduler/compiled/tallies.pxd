cimport cython
from scheduler.compiled cimport plain


@cython.locals(m="const unsigned int[::1]", o="long long[::1]", i="long long")
cpdef count(model, long long first, offered)
@cython.locals(
    m="const long long[::1]", s="const long long[::1]", a="const long long[::1]", d="const long long[::1]",
    objective="const long long[::1]", g="long long[::1]", t="long long[::1]", o="long long[::1]",
    v="unsigned int[::1]", e="long long[::1]", limit="const long long[::1]", start="long long",
    which="long long", n="long long", place="long long", back="long long", length="long long", to="long long",
    first="long long", missed="long long", most="long long", due="long long", latency="long long", i="long long", j="long long",
)
cpdef long long answer(
    model, size, answered, deadline, slo, long long begin, good, late, oldest, value, end, stop
) except -1
@cython.locals(
    v="const unsigned int[::1]", first="const long long[::1]", last="const long long[::1]", h="unsigned int[::1]",
    size="long long", m="long long", i="long long",
)
cpdef histogram(value, begin, end, long long shift, bins)
@cython.locals(
    v="const unsigned int[::1]", first="const long long[::1]", last="const long long[::1]",
    w="const unsigned char[::1]", x="unsigned int[::1]", n="long long", m="long long", i="long long",
)
cpdef long long gather(value, begin, end, long long shift, wanted, out) except -1
@cython.locals(g="double[::1]", x="long long[::1]", i="long long", ns="long long")
cpdef long long points(gaps, double reached, double total, double factor, long long until, at) except -1
