/* SPDX-License-Identifier: Apache-2.0 */
/* Policies as the programs' options name them: NAME[,key=value...], e.g. cis-mass,k=476,eps=0.1. */
#ifndef PRHS_POLICY_TEXT_H
#define PRHS_POLICY_TEXT_H

#include <stdbool.h>

#include <prhs/policy.h>

/*
 * false, with a sentence on standard error that begins with the program's name. *list_layers: what prhs_session_params.list_layers takes, from
 * map=0.1.1.3..., a number for each layer; the caller frees it; NULL: every layer has lists of its own. list_layers NULL: maps are refused.
 */
bool policy_parse(const char *program, const char *text, uint32_t layers, prhs_policy *policy, uint32_t **list_layers);

#endif
