/* The library's self-test as a program, for machines and sanitizers that Python is not there for. */
#include "version.h"

#include <stdio.h>

int main(void) {
    char why[256] = "";
    int wrong = ea_self_test(why, sizeof why);
    printf("edgefast %s: %s\n", ea_version(), wrong ? why : "self-test passes");
    return wrong ? 1 : 0;
}
