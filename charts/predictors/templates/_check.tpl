{{/* Holds the values to the chart's schema (files/schema.json, which `make docs` makes of values.schema.json), in sentences. */}}

{{/* Ends with a message that begins on a line of its own: Helm puts the template's place before it. */}}
{{- define "predictors.fail" -}}
{{- fail (print "\n\n" . "\n") -}}
{{- end }}

{{/* Refuses values that the schema doesn't allow, all of them at once. */}}
{{- define "predictors.refuse.values" -}}
{{- $schema := .Files.Get "files/schema.json" | fromJson -}}
{{- $foreign := .Files.Get "files/foreign.yaml" | fromYaml -}}
{{- include "predictors.fill" . -}}
{{- include "predictors.refuse.globals" . -}}
{{- $gone := include "predictors.emptied" (list "" .Values.AsMap $schema $schema) | fromJsonArray -}}
{{- with .Values.defaults }}{{ $gone = concat $gone (include "predictors.emptied" (list "defaults" . $schema.definitions.model $schema) | fromJsonArray) }}{{ end -}}
{{- include "predictors.refuse.gone" (list $gone) -}}
{{- $values := omit (deepCopy .Values.AsMap) "global" -}}
{{- with .Values.global }}{{ $_ := set $values "global" (pick (deepCopy .) "imageRegistry" "imagePullSecrets" "storageClass" "defaultStorageClass") }}{{ end -}}
{{- with include "predictors.check" (dict "at" "" "value" $values "schema" $schema "root" $schema "foreign" $foreign) | trim -}}
{{- include "predictors.fail" . -}}
{{- end -}}
{{- end }}

{{/* JSON's name for the kind of a value. */}}
{{- define "predictors.kind" -}}
{{- if kindIs "invalid" . -}}null
{{- else if kindIs "map" . -}}map
{{- else if kindIs "slice" . -}}list
{{- else if kindIs "string" . -}}string
{{- else if kindIs "bool" . -}}boolean
{{- else if eq (floor .) (float64 .) -}}integer
{{- else -}}number
{{- end -}}
{{- end }}

{{/* A value as a message shows it, not longer than a line. */}}
{{- define "predictors.shown" -}}
{{ toJson . | trunc 120 }}
{{- end }}

{{/* A line for everything that is wrong with a value: (dict at value schema root foreign) */}}
{{- define "predictors.check" -}}
{{- $in := . -}}{{- $at := .at -}}{{- $value := .value -}}{{- $root := .root -}}{{- $schema := .schema -}}
{{- with get $schema "$ref" }}{{ $schema = get $root.definitions (base .) }}{{ end -}}
{{- $kind := include "predictors.kind" $value -}}
{{- if not (and (eq $kind "null") (regexMatch `^models\.[^\[]+$` $at)) -}}
{{- $wrong := list -}}{{- $firm := "" -}}
{{- $types := get $schema "type" -}}
{{- if and $types (kindIs "string" $types) }}{{ $types = list $types }}{{ end -}}
{{- $asked := list -}}
{{- range $types | default list }}{{ $asked = append $asked (get (dict "object" "map" "array" "list") . | default .) }}{{ end -}}
{{- $place := include "predictors.place" (list $at) -}}
{{- $special := get (get $in.foreign "values" | default dict) (trimSuffix "." $place) -}}
{{- if and $asked (not (has $kind $asked)) (not (and (eq $kind "integer") (has "number" $asked))) -}}
  {{- $needed := printf "a %s is needed" (join " or a " (without $asked "null")) | replace "a integer" "an integer" -}}
  {{- if and (has "string" $asked) (has $kind (list "boolean" "integer" "number")) -}}
  {{- $firm = "a string is needed: quote it" -}}
  {{- else if and (eq $kind "string") (or (has "boolean" $asked) (has "integer" $asked) (has "number" $asked)) (regexMatch `^(true|false|-?[0-9.]+)$` $value) -}}
  {{- $firm = print $needed ": take the quotes away (--set or --set-json, not --set-string)" -}}
  {{- end -}}
  {{- $wrong = append $wrong $needed -}}
{{- else if and (hasKey $schema "enum") (not (has (toJson $value) (include "predictors.texts" (get $schema "enum") | fromJsonArray))) -}}
  {{- $wrong = append $wrong (printf "there are %s%s" (get $schema "enum" | toJson | trimAll "[]" | replace "," ", ") (eq $kind "boolean" | ternary "; quote it, since YAML takes on and off for true and false" "")) -}}
{{- else if and (hasKey $schema "const") (ne (toJson $value) (toJson (get $schema "const"))) -}}
  {{- $wrong = append $wrong (printf "it must be %s" (toJson (get $schema "const"))) -}}
{{- else if eq $kind "string" -}}
  {{- with get $schema "pattern" }}{{ if not (regexMatch . $value) }}{{ $wrong = append $wrong (printf "it must match %s" .) }}{{ end }}{{ end -}}
  {{- with get $schema "minLength" }}{{ if lt (len $value) (int .) }}{{ $wrong = append $wrong "it must not be empty" }}{{ end }}{{ end -}}
  {{- with get $schema "maxLength" }}{{ if gt (len $value) (int .) }}{{ $wrong = append $wrong (printf "at most %d characters" (int .)) }}{{ end }}{{ end -}}
{{- else if has $kind (list "integer" "number") -}}
  {{- if hasKey $schema "minimum" }}{{ if lt (float64 $value) (float64 $schema.minimum) }}{{ $wrong = append $wrong (printf "at least %v" $schema.minimum) }}{{ end }}{{ end -}}
  {{- if hasKey $schema "maximum" }}{{ if gt (float64 $value) (float64 $schema.maximum) }}{{ $wrong = append $wrong (printf "at most %v" $schema.maximum) }}{{ end }}{{ end -}}
  {{- if hasKey $schema "exclusiveMinimum" }}{{ if le (float64 $value) (float64 $schema.exclusiveMinimum) }}{{ $wrong = append $wrong (printf "more than %v" $schema.exclusiveMinimum) }}{{ end }}{{ end -}}
  {{- if hasKey $schema "exclusiveMaximum" }}{{ if ge (float64 $value) (float64 $schema.exclusiveMaximum) }}{{ $wrong = append $wrong (printf "less than %v" $schema.exclusiveMaximum) }}{{ end }}{{ end -}}
{{- else if eq $kind "list" -}}
  {{- with get $schema "minItems" }}{{ if lt (len $value) (int .) }}{{ $wrong = append $wrong "it must not be empty" }}{{ end }}{{ end -}}
{{- end -}}
{{- with get $schema "anyOf" -}}
  {{- $fits := false -}}
  {{- range . }}{{ if not (include "predictors.check" (set (omit $in "-") "schema" .) | trim) }}{{ $fits = true }}{{ end }}{{ end -}}
  {{- if not $fits }}{{ $wrong = append $wrong "it is of none of the forms that are understood" }}{{ end -}}
{{- end -}}
{{- with get $schema "not" -}}
  {{- if not (include "predictors.check" (set (omit $in "-") "schema" .) | trim) }}{{ $wrong = append $wrong "it is not allowed" }}{{ end -}}
{{- end -}}
{{- $texts := list -}}
{{- range $wrong }}{{ $texts = append $texts (coalesce $firm $special (get $schema "errorMessage") .) }}{{ end -}}
{{- range uniq $texts }}
{{ default "values" $at }} is {{ include "predictors.shown" $value }}: {{ . }}
{{- end -}}
{{- if not $wrong -}}
{{- range get $schema "allOf" | default list }}{{ include "predictors.check" (set (omit $in "-") "schema" .) }}{{ end -}}
{{- with get $schema "if" }}{{ if not (include "predictors.check" (set (omit $in "-") "schema" .) | trim) }}{{ with get $schema "then" }}{{ include "predictors.check" (set (omit $in "-") "schema" .) }}{{ end }}{{ end }}{{ end -}}
{{- if eq $kind "list" -}}
  {{- with get $schema "items" -}}
  {{- $items := . -}}
  {{- range $i, $each := $value }}{{ include "predictors.check" (set (set (set (omit $in "-") "at" (printf "%s[%d]" $at $i)) "value" $each) "schema" $items) }}{{ end -}}
  {{- end -}}
{{- else if eq $kind "map" -}}
  {{- include "predictors.check.map" (set (omit $in "-") "schema" $schema) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* What is wrong within a map: as "predictors.check", with the schema found. */}}
{{- define "predictors.check.map" -}}
{{- $in := . -}}{{- $at := .at -}}{{- $schema := .schema -}}
{{- $known := get $schema "properties" | default dict -}}
{{- $more := get $schema "additionalProperties" -}}
{{- range get $schema "required" | default list -}}
{{- if not (hasKey $in.value .) }}
{{ print $at "." . | trimPrefix "." }} is needed
{{- end -}}
{{- end -}}
{{- range $key, $each := .value -}}
  {{- $path := print $at "." $key | trimPrefix "." -}}
  {{- $inner := get $known $key -}}
  {{- with get $schema "propertyNames" -}}
    {{- if include "predictors.check" (set (set (set (omit $in "-") "value" $key) "at" $path) "schema" .) | trim }}
{{ $path }}: {{ include "predictors.foreign" (list $in.foreign $at $key) | default (get . "errorMessage") | default (printf "the name must match %s" (get . "pattern")) }}
    {{- end -}}
  {{- end -}}
  {{- if $inner -}}
    {{- include "predictors.check" (set (set (set (omit $in "-") "at" $path) "value" $each) "schema" $inner) -}}
  {{- else if kindIs "map" $more -}}
    {{- include "predictors.check" (set (set (set (omit $in "-") "at" $path) "value" $each) "schema" $more) -}}
  {{- else if and (kindIs "bool" $more) (not $more) }}
{{ include "predictors.unknown" (list $in $at $key $known) }}
  {{- end -}}
{{- end -}}
{{- end }}

{{/* The JSON texts of a list's items, as JSON. */}}
{{- define "predictors.texts" -}}
{{- $texts := list -}}
{{- range . }}{{ $texts = append $texts (toJson .) }}{{ end -}}
{{ toJson $texts }}
{{- end }}

{{/* The kind of place that a path is: `model.gpu.` of models.flux.gpu, empty at the top: (list path) */}}
{{- define "predictors.place" -}}
{{ regexReplaceAll `\[\d+\]` (regexReplaceAll `^(models\.[^.]+|defaults)(\.|$)` (printf "%s." (first .)) "model.") "" | trimPrefix "." }}
{{- end }}

{{/* What the table of other charts' names says of a key, or nothing: (list foreign at key) */}}
{{- define "predictors.foreign" -}}
{{- $place := include "predictors.place" (list (index . 1)) | trimSuffix "." | default "top" -}}
{{- $at := index . 1 -}}{{- $key := index . 2 -}}
{{- $said := get (get (first .).keys $place | default dict) $key | default (get (first .).keys.anywhere $key) -}}
{{ replace "MODEL" (hasPrefix "models." $at | ternary (splitList "." $at | rest | first | printf "models.%s") "defaults") (default "" $said) }}
{{- end }}

{{/* The sentence for a key that isn't known: (list in at key known) */}}
{{- define "predictors.unknown" -}}
{{- $in := index . 0 -}}{{- $at := index . 1 -}}{{- $key := index . 2 -}}{{- $known := index . 3 -}}
{{- $path := print $at "." $key | trimPrefix "." -}}
{{- $place := include "predictors.place" (list $at) -}}
{{- $said := include "predictors.foreign" (list $in.foreign $at $key) -}}
{{- $near := include "predictors.nearest" (list $key (keys $known)) -}}
{{- $model := $in.root.definitions.model.properties -}}
{{- $settings := $in.root.definitions.settings.properties -}}
{{- $snake := snakecase $key -}}
{{- $setting := list -}}
{{- range $section, $of := $settings }}{{ if hasKey $of.properties $snake }}{{ $setting = append $setting (printf "settings.%s.%s" $section $snake) }}{{ end }}{{ end -}}
{{- if $said -}}
{{ $path }}: {{ $said }}
{{- else if and (not $place) (hasKey $in.foreign.keys.model $key) -}}
{{ $path }} belongs to a model, or to defaults: {{ get $in.foreign.keys.model $key | replace "MODEL" "defaults" }}
{{- else if and (not $place) (hasKey $model $key) -}}
{{ $path }} belongs to a model: say defaults.{{ $key }} for all, or models.NAME.{{ $key }}
{{- else if and (eq $place "model.") (hasKey $in.root.properties $key) -}}
{{ $path }} is not a model's: say {{ $key }} at the top level
{{- else if and (hasPrefix "model." $place) $setting (not (hasKey $known $snake)) -}}
{{ $path }} is a setting: say {{ join " or " $setting }}
{{- else if regexMatch `^(x-|[._])` $key -}}
{{ $path }}: an anchor needs a key that is known: put it at the first model that uses it, or say defaults, which every model takes
{{- else if $near -}}
{{ $path }}: there is no such key; did you mean {{ $near }}?
{{- else if gt (len $known) 20 -}}
{{ $path }}: there is no such key; `helm show values` has those that there are{{ if eq $place "model." }}, under defaults{{ end }}
{{- else -}}
{{ $path }}: there is no such key; there are {{ keys $known | sortAlpha | join ", " }}
{{- end -}}
{{- end }}

{{/* The known key most like another, by the pairs of letters that they share, or nothing: (list key keys) */}}
{{- define "predictors.nearest" -}}
{{- $plain := regexReplaceAll `[-_.]` (lower (first .)) "" -}}
{{- $best := "" -}}{{- $most := 49 -}}
{{- range last . | sortAlpha -}}
  {{- $other := regexReplaceAll `[-_.]` (lower .) "" -}}
  {{- $shared := 0 -}}
  {{- range $i := until (max 0 (sub (len $plain) 1) | int) -}}
    {{- if contains (substr $i (add $i 2 | int) $plain) $other }}{{ $shared = add1 $shared }}{{ end -}}
  {{- end -}}
  {{- $score := div (mul 200 $shared) (max 1 (sub (add (len $plain) (len $other)) 2)) -}}
  {{- if gt (int $score) (int $most) }}{{ $best = . }}{{ $most = $score }}{{ end -}}
{{- end -}}
{{ $best }}
{{- end }}
