{{/* What the values mean before they are checked: templates in them, nulls, and `global`, which other charts share (ADR 0063). */}}

{{/* Fills in what the values leave to the chart, in place. The deepest template calls it, which Helm renders first. */}}
{{- define "predictors.fill" -}}
{{- $root := . -}}
{{- range $key, $value := omit .Values.AsMap "extraObjects" "global" -}}
{{- if regexMatch (include "predictors.templatePattern" $) (toJson $value) -}}
{{- $_ := set $root.Values $key (include "predictors.rendered" (list $root $value) | fromJson).value -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* By what a template for Helm is told from one for Vault, Prometheus or KServe, which stays as it is. */}}
{{- define "predictors.templatePattern" -}}
\{\{[^}]*(\.(Release|Values|Chart|Capabilities)\b|\binclude )
{{- end }}

{{/* A value with its templates rendered, as JSON under `value`: (list root value) */}}
{{- define "predictors.rendered" -}}
{{- $root := first . -}}{{- $value := last . -}}
{{- if kindIs "map" $value -}}
  {{- $of := dict -}}
  {{- range $key, $each := $value }}{{ $_ := set $of $key (include "predictors.rendered" (list $root $each) | fromJson).value }}{{ end -}}
  {{- $value = $of -}}
{{- else if kindIs "slice" $value -}}
  {{- $of := list -}}
  {{- range $value }}{{ $of = append $of (include "predictors.rendered" (list $root .) | fromJson).value }}{{ end -}}
  {{- $value = $of -}}
{{- else if kindIs "string" $value -}}
  {{- if regexMatch (include "predictors.templatePattern" $root) $value }}{{ $value = tpl $value $root }}{{ end -}}
{{- end -}}
{{ dict "value" $value | toJson }}
{{- end }}

{{/* Puts the empty list, map or text where a null, or a key with nothing after it, has removed one, and returns as JSON what has no empty form: (list path map schema root) */}}
{{- define "predictors.emptied" -}}
{{- $at := index . 0 -}}{{- $map := index . 1 -}}{{- $schema := index . 2 -}}{{- $root := index . 3 -}}
{{- $gone := list -}}
{{- range $key, $of := $schema.properties -}}
  {{- $path := print $at "." $key | trimPrefix "." -}}
  {{- $inner := get $of "properties" -}}
  {{- $named := get $of "$ref" | default "" | base -}}
  {{- with get $of "$ref" }}{{ $of = get $root.definitions (base .) }}{{ end -}}
  {{- $types := get $of "type" | default list -}}
  {{- $empty := dict "array" list "object" dict "string" "" -}}
  {{- $isPartial := or (has $key (list "behavior" "dnsConfig" "slo")) (and $at (eq $key "image")) -}}
  {{- if hasKey $map $key -}}
    {{- if and $inner (not $isPartial) (kindIs "map" (get $map $key)) -}}
    {{- $gone = concat $gone (include "predictors.emptied" (list $path (get $map $key) $of $root) | fromJsonArray) -}}
    {{- end -}}
  {{- else if $isPartial -}}
    {{- $_ := set $map $key dict -}}
  {{- else if or (eq $key "format") (kindIs "slice" (get $of "type")) (hasKey $of "anyOf") (and (eq $at "defaults") (has $named (list "podSecurity" "containerSecurity"))) -}}
    {{- /* has no default, or may be missing */ -}}
  {{- else if and (hasKey $of "enum") (has "" (get $of "enum")) -}}
    {{- $_ := set $map $key "" -}}
  {{- else if or $inner (has $named (list "model" "podSecurity" "containerSecurity")) (not (kindIs "string" $types)) (not (hasKey $empty (toString $types))) -}}
    {{- $gone = append $gone $path -}}
  {{- else if include "predictors.check" (dict "at" $path "value" (get $empty $types) "schema" $of "root" $root "foreign" dict) | trim -}}
    {{- $gone = append $gone $path -}}
  {{- else -}}
    {{- $_ := set $map $key (get $empty $types) -}}
  {{- end -}}
{{- end -}}
{{ toJson $gone }}
{{- end }}

{{/* Ends where a null has removed what the chart can't do without: (list paths) */}}
{{- define "predictors.refuse.gone" -}}
{{- with first . -}}
{{- $why := "null removes a key that the chart needs; leave it out" -}}
{{- if has "podSecurityContext" . }}{{ $why = print $why ", or remove what is in it ({runAsUser: null}), as values-openshift.yaml does" }}{{ end -}}
{{- if not (hasPrefix "models." (first .)) }}{{ $why = print $why ". `helm upgrade --reuse-values` removes what the chart before did not have: say --reset-then-reuse-values" }}{{ end -}}
{{- include "predictors.fail" (printf "%s: %s" (join ", " .) $why) -}}
{{- end -}}
{{- end }}

{{/* Keys of `global` that the chart does not read. */}}
{{- define "predictors.globals" -}}
{{ keys (omit (default dict .Values.global) "imageRegistry" "imagePullSecrets" "storageClass" "defaultStorageClass") | sortAlpha | toJson }}
{{- end }}

{{/* Refuses what only a chart above this one may say: `enabled`, and keys of `global` that mean something to other charts. */}}
{{- define "predictors.refuse.globals" -}}
{{- if eq (len (splitList "/" .Template.BasePath)) 2 -}}
{{- if eq (toString .Values.enabled) "false" -}}
{{- include "predictors.fail" "enabled is false: it is for a chart above this one, as the condition of a dependency. Say models.NAME.enabled false, or helm uninstall" -}}
{{- end -}}
{{- $wrong := list -}}
{{- with include "predictors.globals" . | fromJsonArray -}}
{{- $foreign := $.Files.Get "files/foreign.yaml" | fromYaml -}}
{{- range $key := . -}}
{{- with get $foreign.keys.global $key }}{{ $wrong = append $wrong (printf "global.%s: %s" $key .) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- with $wrong }}{{ include "predictors.fail" (join "\n" .) }}{{ end -}}
{{- end -}}
{{- end }}
