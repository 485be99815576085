cimport cython
from symphony.compiled cimport loads

@cython.locals(
    length="long long", done="long long", i="Py_ssize_t", k="long long", many="long long", place="long long",
    here="long long",
)
cpdef long long gather(
    const unsigned long long[::1] ring, const long long[::1] start, const long long[::1] size,
    unsigned long long[::1] found,
) except -1

@cython.locals(
    bits="long long", first="long long", following="long long", counted="long long", now="long long",
    ok="int", dropped="int", status="int", length="long long", oldest="long long", good="long long",
    late="long long", gone="long long", other="long long", strange="long long", n="Py_ssize_t", i="Py_ssize_t",
    number="long long", place="long long", due="long long",
)
cpdef long long settle(
    const unsigned char[::1] keys, const unsigned char[::1] statuses, long long[::1] deadlines, tuple span,
    long long[::1] sums,
) except -1
