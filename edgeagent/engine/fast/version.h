/* What this library is, and whether it works on this machine. */
#ifndef EA_VERSION_H
#define EA_VERSION_H

#include <stddef.h>

#ifndef EA_API
#define EA_API __attribute__((visibility("default")))
#endif

/* That of the Python package (edgeagent/version.py). */
#define EA_VERSION "0.1.0"

/* EA_VERSION as it was when this library was built; a static string. */
EA_API const char *ea_version(void);

/* Runs the self-test of every part, some milliseconds. 0: all right. Else the number of the first part that is wrong,
 * from 1, with its name and what is wrong in `why` (at most `why_bytes` with the final 0; may be NULL with 0). */
EA_API int ea_self_test(char *why, size_t why_bytes);

#endif
